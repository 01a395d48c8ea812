"""Image classification from a folder per class, IDX files or a .npz file."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lissome.core.cache import digest, file_sha256
from lissome.core.errors import BadInput, BadTask, closest
from lissome.core.task import SplitName, Task, correct
from lissome.data.idx import read_idx
from lissome.data.labels import class_ids, class_order
from lissome.data.pixels import SUFFIXES, Normalise, is_grey, open_picture, picture_array, plain_images, resize_plain
from lissome.data.splitting import ALGORITHM
from lissome.data.tasks.assemble import Examples, check_splits, divide, with_targets
from lissome.data.tasks.config import ImageClassification, ImageFiles, TaskFile


@dataclass(frozen=True)
class Pictures:
    """What one folder or file holds: images [c, h, w] each, labels as text, a hash of the bytes read, remarks."""

    images: list[np.ndarray]
    labels: list[str]
    sha: str
    notes: tuple[str, ...] = ()


def image_task(file: TaskFile, config: ImageClassification, ref: str) -> Task:
    """The Task that an image-classification file describes."""
    read = {name: _read(value, file, config, at) for name, (value, at) in _named(file, config).items()}
    shape = _one_shape(read, file)
    for key in ("mean", "std"):
        values = getattr(config, key)
        if values is not None and len(values) not in (1, shape[0]):
            raise BadTask(f"`{key}` has {len(values)} values, the images have {shape[0]} channels", where=file.at(key), expected=f"1 or {shape[0]} values")
    parts = {name: Examples(p.images, p.labels) for name, p in read.items()}
    divided = divide(parts, config.fractions, config.seed, config.allow_duplicates, str(file.path))
    every = [str(label) for part in divided.splits.values() for label in part.labels]
    classes = class_order(every, config.classes, file.at("classes" if config.classes else "labels"))
    targets = {name: class_ids([str(label) for label in part.labels], classes) for name, part in divided.splits.items()}
    settings = config.model_dump(mode="json", exclude={"name", "data", "splits"})
    dtype = str(next(iter(read.values())).images[0].dtype)
    normalise = Normalise(config.input, config.mean, config.std)
    task = Task(
        name=config.name or file.path.stem,
        kind=config.kind,
        splits=with_targets(divided.splits, targets),
        collate=normalise.collate,
        score=correct,
        fingerprint=digest("image", ALGORITHM, {name: p.sha for name, p in read.items()}, settings, shape),
        ref=ref,
        classes=classes,
        parse=lambda text: parse_picture(text, shape, dtype),
        notes=(*divided.notes, *(note for p in read.values() for note in p.notes)),
    )
    return check_splits(task, str(file.path))


def parse_picture(text: str, shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """A picture's path from the command line, brought to the task's channels and size [c, h, w].

    Raises BadInput where the task's images are not bytes: the scale of floats is the task's own, and a picture's 0..255 would be taken as it is.
    """
    if dtype != "uint8":
        raise BadInput("this task's images are arrays of numbers, not pictures: predict from Python", where=text, do="lissome.load(FOLDER)(arrays)")
    path = Path(text)
    return picture_array(open_picture(path), path, shape[0], (shape[1], shape[2]))


def _named(file: TaskFile, config: ImageClassification) -> dict[SplitName, tuple[str | ImageFiles, str]]:
    """What each split is read from, and the line that says so."""
    if config.splits is None:
        assert config.data is not None, "the schema asks for one of the two"
        return {"train": (config.data, file.at("data"))}
    return {name: (value, file.at("splits", name)) for name, value in config.splits.items()}


def _read(value: str | ImageFiles, file: TaskFile, config: ImageClassification, at: str) -> Pictures:
    """Read a folder, a .npz, two of its arrays, or a pair of IDX files."""
    if isinstance(value, ImageFiles) and config.data is not None:
        return _npz(file.file(config.data), value.images, value.labels, config, at)
    if isinstance(value, ImageFiles):
        return _idx(file.file(value.images), file.file(value.labels), config, at)
    path = file.file(value)
    if path.is_dir():
        return _folders(path, config)
    if path.suffix.lower() == ".npz":
        return _npz(path, config.images or "images", config.labels or "labels", config, at)
    if not path.exists():
        raise BadTask(f'"{path}" does not exist', where=at, do="paths are relative to the YAML file: correct it, or put the data there")
    if config.labels is None:
        raise BadTask(
            f'the labels of "{path.name}" are not named', where=at, expected="a folder, a .npz, or an IDX file with `labels:`", do="add `labels: FILE`"
        )
    return _idx(path, file.file(config.labels), config, at)


def _folders(folder: Path, config: ImageClassification) -> Pictures:
    """A folder per class; files that are no pictures are left out and counted."""
    found = [(path, kind.name) for kind in sorted(p for p in folder.iterdir() if p.is_dir()) for path in sorted(kind.rglob("*")) if path.is_file()]
    pictures = [(path, label) for path, label in found if path.suffix.lower() in SUFFIXES]
    if not pictures:
        raise BadTask("it holds no pictures", where=str(folder), expected=f"a folder per class with files such as {', '.join(SUFFIXES[:3])}")
    opened = [(path, open_picture(path)) for path, _ in pictures]
    channels = config.channels or (1 if all(is_grey(picture) for _, picture in opened) else 3)
    first = opened[0]
    for path, picture in opened if config.size is None else ():
        if picture.size != first[1].size:
            sizes = [f"{p.size[1]} x {p.size[0]}" for p in (first[1], picture)]
            raise BadTask(
                f"pictures of different sizes: {first[0].name} is {sizes[0]}, {path.name} is {sizes[1]} (height x width)",
                where=str(folder),
                expected="one size",
                do=f"add `size: [{first[1].size[1]}, {first[1].size[0]}]` to the task: every picture is resized to it",
            )
    images = [picture_array(picture, path, channels, config.size) for path, picture in opened]
    sha = digest([[str(path.relative_to(folder)), file_sha256(path)] for path, _ in pictures])
    skipped = len(found) - len(pictures)
    notes = (f"{skipped} files in {folder.name} are no pictures and were left out",) if skipped else ()
    return Pictures(images, [label for _, label in pictures], sha, notes)


def _idx(images: Path, labels: Path, config: ImageClassification, at: str) -> Pictures:
    pixels, targets = read_idx(images, at), read_idx(labels, at)
    return _pictures(pixels, targets, config, str(images), str(labels), digest(file_sha256(images), file_sha256(labels)))


def _npz(path: Path, images: str, labels: str, config: ImageClassification, at: str) -> Pictures:
    """Two arrays of a .npz; arrays of Python objects (pickles) are refused."""
    try:
        with np.load(path, allow_pickle=False) as held:
            for name in (images, labels):
                if name not in held.files:
                    raise BadTask(f'there is no array "{name}" in {path.name}.{closest(name, held.files)}', where=at, expected=", ".join(held.files))
            pixels, targets = held[images], held[labels]
    except FileNotFoundError as error:
        raise BadTask(f'the file "{path}" does not exist', where=at, do="paths are relative to the YAML file: correct it, or put the file there") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, AttributeError, TypeError) as error:
        # AttributeError, TypeError: np.load gave a plain array, because the file is a .npy
        raise BadTask(f"not a readable .npz file: {error}", where=str(path), do="save it again with numpy.savez") from error
    except ValueError as error:
        raise BadTask(
            f"an array cannot be read safely: {error}",
            where=str(path),
            expected="arrays of numbers or text; Python objects are pickles, which can run code when read",
            do="save it again with a plain dtype, as array.astype('uint8') or array.astype(str)",
        ) from error
    return _pictures(pixels, targets, config, f"{path}: {images}", f"{path}: {labels}", digest(file_sha256(path), images, labels))


def _pictures(pixels: np.ndarray, targets: np.ndarray, config: ImageClassification, where: str, label_where: str, sha: str) -> Pictures:
    """Arrays of images and labels, checked against one another."""
    images = plain_images(pixels, where)
    if targets.ndim != 1 or len(targets) != len(images):
        raise BadTask(f"{len(images):,} images, labels of shape {targets.shape}", where=label_where, expected="one label per image")
    if np.issubdtype(targets.dtype, np.floating):
        if not (np.isfinite(targets).all() and (targets == np.round(targets)).all()):
            raise BadTask("labels that are not whole numbers", where=label_where, expected="class numbers or names")
        targets = targets.astype(np.int64)
    if not len(images):
        raise BadTask("it holds no images", where=where, expected="at least one example in each split")
    if config.channels not in (None, images.shape[1]):
        raise BadTask(f"the images have {images.shape[1]} channels, `channels` says {config.channels}", where=where)
    images = resize_plain(images, config.size, where) if config.size else images
    return Pictures(list(images), [str(label) for label in targets.tolist()], sha)


def _one_shape(read: dict[SplitName, Pictures], file: TaskFile) -> tuple[int, int, int]:
    """The shape [c, h, w] that all images share."""
    shapes = {name: p.images[0].shape for name, p in read.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise BadTask(
                f"images of {first} are {shapes[first]}, those of {name} are {shape} (channels, height, width)",
                where=file.at("splits"),
                do="set `size:` and `channels:`",
            )
    c, h, w = shapes[first]
    return c, h, w
