"""Labels: from what a file says to class numbers, in an order that does not depend on the rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lissome.core.errors import BadTask, closest

INTEGER = re.compile(r"[+-]?\d+")


def class_order(labels: Sequence[str], given: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Class names in the order of the model's outputs: as given, else sorted, by number where all are whole numbers.

    Raises BadTask when a label is not among the given ones, or there are fewer than two.
    """
    present = Counter(labels)
    if given is not None:
        for label in present:
            if label not in given:
                raise BadTask(f'the label "{label}" is not in `classes`.{closest(label, tuple(given))}', where=where, expected=", ".join(given))
        return tuple(given)
    if len(present) < 2:
        only = f'the only label is "{next(iter(present))}"' if present else "there are no labels"
        raise BadTask(only, where=where, expected="at least two classes", do="check the label column")
    if all(INTEGER.fullmatch(label) for label in present):
        return tuple(sorted(present, key=int))
    return tuple(sorted(present))


def class_ids(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """int64 [n]: position of each label in `classes`."""
    position = {name: i for i, name in enumerate(classes)}
    return np.array([position[label] for label in labels], dtype=np.int64)
