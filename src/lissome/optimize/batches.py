"""Which examples are run for what: tracing, calibration, timing, scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lissome.core.task import Padding, Split, Task

if TYPE_CHECKING:
    import numpy as np

    NamedArrays = dict[str, np.ndarray]

SCORING_BATCH = 32
TIMED_CALLS = 16
CALIBRATION_EXAMPLES = 256


def tracing_batch(task: Task) -> NamedArrays:
    """Two examples of the calibration split, as one batch: a single one would be traced as a constant."""
    split = task.splits["calibration"]
    return task.collate([split.inputs[0], split.inputs[min(1, len(split) - 1)]], "longest")


def calibration_batches(task: Task) -> list[NamedArrays]:
    """Up to 256 calibration examples in batches of 8."""
    inputs = task.splits["calibration"].inputs
    count = min(len(inputs), CALIBRATION_EXAMPLES)
    return [task.collate(list(inputs[i : min(i + 8, count)]), "longest") for i in range(0, count, 8)]


def timing_batches(task: Task, batch: int, padding: Padding, seed: int = 0, calls: int = 1) -> list[NamedArrays]:
    """Examples of the validation split in batches of `batch`: the same ones, in the same order, for every padding.

    16 batches of one, fewer of larger ones (down to 4), times `calls`. Where lengths vary, one example is drawn from each of as many equally
    filled ranges of length, so that a few examples stand for all; then they are shuffled.
    """
    import numpy as np

    split, rng = task.splits["validation"], np.random.default_rng(seed)
    size = calls * batch * (max(4, TIMED_CALLS // max(1, batch // 4)) if batch > 1 else TIMED_CALLS)
    ordered = sorted(range(len(split)), key=lambda i: _length(split.inputs[i])) if task.variable_length else rng.permutation(len(split)).tolist()
    edges = np.linspace(0, len(ordered), size + 1)
    picks = [ordered[min(int(rng.uniform(low, high)), len(ordered) - 1)] for low, high in pairwise(edges)]
    rng.shuffle(picks)
    return [task.collate([split.inputs[int(j)] for j in picks[i : i + batch]], padding) for i in range(0, len(picks), batch)]


@dataclass(frozen=True)
class Ordered:
    """Batches for scoring. order: position of each batched example in the split, so that outputs can be put back."""

    batches: list[NamedArrays]
    order: Sequence[int]
    size: int

    def restore(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs in the split's own order; rows that only filled up a fixed batch are dropped."""
        import numpy as np

        restored = np.empty((self.size, *outputs.shape[1:]), dtype=outputs.dtype)
        restored[list(self.order)] = outputs[: len(self.order)]
        return restored


def judging_order(task: Task, seed: int) -> list[int]:
    """The validation examples in the order they are spent: a seeded shuffle, so that its first part is a fair sample of the whole."""
    import numpy as np

    order: list[int] = np.random.default_rng(seed).permutation(len(task.splits["validation"])).tolist()
    return order


def part_of(split: Split, picks: Sequence[int]) -> Split:
    """The examples of a split at the positions `picks`, in that order."""
    return Split([split.inputs[i] for i in picks], split.targets[list(picks)])


def scoring_batches(task: Task, split: Split, batch: int = SCORING_BATCH, padding: Padding = "longest", full: bool = False) -> Ordered:
    """All examples of a split. Where lengths vary they are sorted by length, so that little is padded.

    full: fill the last batch up (for forms of one fixed shape) by repeating its last example.
    """
    order = list(range(len(split)))
    if task.variable_length:
        order.sort(key=lambda i: _length(split.inputs[i]))
    groups: list[list[Any]] = [[split.inputs[i] for i in order[j : j + batch]] for j in range(0, len(order), batch)]
    if full and groups:
        groups[-1] += [groups[-1][-1]] * (batch - len(groups[-1]))
    return Ordered([task.collate(group, padding) for group in groups], order, len(split))


def _length(example: Any) -> int:
    """Length of a variable-length example, whatever holds it."""
    return len(example)
