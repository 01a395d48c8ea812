"""The embedded default task."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from lissome.core.errors import BadInput, MissingExtra
from lissome.core.task import SPLITS
from lissome.data import check_task, digits_task, load_task


def test_what_it_is() -> None:
    task = digits_task()
    assert task.classes == tuple("0123456789")
    assert sum(task.sizes().values()) == 1797
    assert task.sizes()["test"] >= 700
    batch = task.collate(task.splits["test"].inputs[:4], "fixed")
    assert batch["images"].shape == (4, 1, 8, 8)
    assert batch["images"].dtype == np.float32
    values = np.stack([image for name in SPLITS for image in task.splits[name].inputs])
    assert values.min() == 0
    assert values.max() == 1
    for name in ("train", "validation", "test"):
        counts = np.bincount(task.splits[name].targets, minlength=10)
        assert counts.max() - counts.min() <= 0.1 * counts.sum() / 10 + 3


def test_seeded() -> None:
    one, two, other = digits_task(), digits_task(), digits_task(seed=1)
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert (one.splits["test"].targets == two.splits["test"].targets).all()
    assert load_task("lissome.data.digits:digits_task").fingerprint == one.fingerprint


def test_no_image_in_two_splits() -> None:
    report = check_task(digits_task())
    assert report.across == ()
    assert report.shape == (1, 8, 8)
    assert report.lengths is None


def test_numbers_as_input() -> None:
    task = digits_task()
    assert task.parse is not None
    assert task.parse(",".join(["16"] * 64)).max() == 1
    with pytest.raises(BadInput, match="not all 64 cells are numbers"):
        task.parse(",".join(["x"] * 64))


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install .lissome\[digits\]."):
        digits_task()
