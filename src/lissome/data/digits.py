"""The embedded default: scikit-learn's handwritten digits, which need no registry."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lissome.core.cache import digest
from lissome.core.errors import BadInput, MissingExtra
from lissome.core.task import Padding, Split, SplitName, Task, correct
from lissome.data.duplicates import keys_of
from lissome.data.pixels import Normalise, open_picture, picture_array
from lissome.data.splitting import ALGORITHM, Fractions, split_rows, units_of

FRACTIONS = Fractions(train=0.4, calibration=0.05, validation=0.15, test=0.4)
"""1,797 images. A large test split (about 720), so that a drop of 1 point can be certified when few answers change."""
_NORMALISE = Normalise("images")


def digits_task(seed: int = 0) -> Task:
    """Images float32 [1, 8, 8] in 0..1, ten classes; stratified, seeded splits. Raises MissingExtra without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "digits", "the digits task") from error
    held = load_digits()
    images = (np.asarray(held.images, dtype=np.float32) / np.float32(16))[:, None]
    targets = np.asarray(held.target, dtype=np.int64)
    parts = split_rows(targets, FRACTIONS.shares(), seed, units_of(len(images), keys_of(images)))
    splits: dict[SplitName, Split] = {name: Split(list(images[at]), targets[at]) for name, at in parts.items()}
    content = hashlib.sha256(images.tobytes() + targets.tobytes()).hexdigest()
    return Task(
        name="digits",
        kind="image-classification",
        splits=splits,
        collate=_collate,
        score=correct,
        fingerprint=digest("digits", ALGORITHM, content, seed, FRACTIONS.model_dump()),
        ref="lissome.data.digits:digits_task",
        classes=tuple(str(digit) for digit in range(10)),
        parse=_parse,
        notes=("scikit-learn's digits, 8 x 8 pixels; splits made here, stratified by label",),
    )


def _collate(examples: Sequence[np.ndarray], padding: Padding) -> dict[str, np.ndarray]:
    return _NORMALISE.collate(examples, padding)


def _parse(text: str) -> np.ndarray:
    """A picture's path (resized to 8 x 8), or 64 numbers 0..16 separated by commas."""
    cells = text.split(",")
    if len(cells) == 64:
        try:
            return (np.array(cells, dtype=np.float32) / np.float32(16)).reshape(1, 8, 8)
        except ValueError as error:
            raise BadInput(f"not all 64 cells are numbers: {error}", expected="64 numbers 0..16, or a picture's path") from error
    path = Path(text)
    return picture_array(open_picture(path), path, 1, (8, 8)).astype(np.float32) / np.float32(255)
