"""Images as arrays [channels, height, width]: from picture files (extra "images") and from plain arrays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lissome.core.errors import BadTask, MissingExtra
from lissome.core.task import Padding

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")


@dataclass(frozen=True)
class Normalise:
    """Batch images: uint8 scaled to 0..1 (floats taken as they are), then (value - mean) / std per channel, float32 [n, channels, height, width]."""

    name: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def collate(self, images: Sequence[np.ndarray], padding: Padding) -> dict[str, np.ndarray]:
        """One batch; `padding` changes nothing, since all images have one size."""
        stacked = np.stack(images)
        batch = stacked.astype(np.float32)
        if stacked.dtype == np.uint8:
            batch /= np.float32(255)
        if self.mean is not None:
            batch -= np.asarray(self.mean, dtype=np.float32)[:, None, None]
        if self.std is not None:
            batch /= np.asarray(self.std, dtype=np.float32)[:, None, None]
        return {self.name: batch}


def open_picture(path: Path) -> Image:
    """A decoded picture, upright (EXIF orientation applied). Raises BadTask for a missing or damaged file, MissingExtra without pillow."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtra("pillow", "images", "reading picture files") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.load()
                return ImageOps.exif_transpose(opened)
    except FileNotFoundError as error:
        raise BadTask("the picture does not exist", where=str(path), do="check the path") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadTask(f"the picture is too large: {error}", where=str(path), do="make it smaller") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # pillow raises all four for damaged files (SyntaxError: a broken PNG chunk)
        raise BadTask(f"the picture cannot be read: {error}", where=str(path), do="replace or remove the file") from error


def is_grey(picture: Image) -> bool:
    """Whether the picture has a single channel of brightness."""
    return picture.mode in ("1", "L", "LA")


def picture_array(picture: Image, path: Path, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """uint8 [channels, height, width], resized (bilinear) to `size` = (height, width) if given."""
    if picture.mode.startswith(("I", "F")):
        raise BadTask(f"the picture has 16 or more bits per channel (mode {picture.mode})", where=str(path), expected="8 bits", do="convert it to 8 bits")
    converted = picture.convert("L" if channels == 1 else "RGB")
    if size is not None and converted.size != (size[1], size[0]):
        from PIL import Image

        converted = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(converted, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def plain_images(values: np.ndarray, where: str) -> np.ndarray:
    """An array of images as [n, channels, height, width], uint8 or float32.

    Takes [n, h, w], [n, h, w, c] and [n, c, h, w] with c = 1 or 3. Whole numbers must lie in 0..255; floats are taken as already scaled.
    Raises BadTask for other shapes and values, and for NaN.
    """
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[1] not in (1, 3) and values.shape[3] in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    if values.ndim != 4 or values.shape[1] not in (1, 3):
        raise BadTask(f"images of shape {values.shape}", where=where, expected="[n, height, width], or with 1 or 3 channels, first or last")
    if values.dtype == np.bool_ or np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
            raise BadTask(f"{len(bad)} images hold NaN or infinity (the first is number {bad[0]})", where=where, do="remove or repair them")
        return values.astype(np.float32)
    if not np.issubdtype(values.dtype, np.integer) or (values.size and (values.min() < 0 or values.max() > 255)):
        raise BadTask(
            f"images of type {values.dtype} from {values.min()} to {values.max()}", where=where, expected="whole numbers in 0..255, or floats already scaled"
        )
    return values.astype(np.uint8)


def resize_plain(images: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """uint8 images [n, c, h, w] resized (bilinear) to `size`; floats are refused, since their range is not known."""
    if images.shape[2:] == size:
        return images
    if images.dtype != np.uint8:
        raise BadTask("only images of whole numbers in 0..255 can be resized", where=where, do="resize them beforehand, or save them as uint8")
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "images", "resizing images") from error
    resized: list[Any] = [[np.asarray(Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR)) for plane in image] for image in images]
    return np.array(resized, dtype=np.uint8)
