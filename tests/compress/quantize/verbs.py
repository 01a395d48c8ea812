"""A task for tiny.mlp: which of the first four numbers is the largest."""

from __future__ import annotations

import numpy as np

from lissome.core.task import Split, Task, correct


def rows_task(calibration: int = 40) -> Task:
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        rows = rng.normal(size=(n, 24)).astype(np.float32)
        return Split(list(rows), rows[:, :4].argmax(1))

    splits = {"train": split(160), "calibration": split(calibration), "validation": split(60), "test": split(10)}
    ref = "tests.compress.quantize.verbs:rows_task"
    collate = lambda rows, padding: {"features": np.stack(rows)}  # noqa: E731
    return Task("rows", "tabular", splits, collate, correct, f"rows-{calibration}", ref, classes=("a", "b", "c", "d"))


def few() -> Task:
    return rows_task(5)
