"""A Task: four splits, how examples become a batch, and a score per example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

SplitName = Literal["train", "calibration", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "calibration", "validation", "test")

LANGUAGE = "language-modelling"
"""The kind of task whose targets are tokens [n, length], -100 where none is asked for, and whose outputs are logits [n, length, vocabulary]."""

Padding = Literal["longest", "multiple-of-16", "fixed"]
"""How a batch of unequal examples is padded: to its longest, to the next multiple of 16, or to the task's maximum.
Tasks whose examples all have one shape ignore it."""

Risk = Literal["drop", "lost"]
"""What a promise on quality is about: the fall of the mean score, in which answers that get better weigh against those that get worse; or right answers that
become wrong (of other scores, the share that is gone), which no gain makes up for."""

Batch = Mapping[str, "np.ndarray"]
Collate = Callable[[Sequence[Any], Padding], dict[str, "np.ndarray"]]
Score = Callable[["np.ndarray", "np.ndarray"], "np.ndarray"]


@dataclass(frozen=True)
class Split:
    """Examples of one split.

    inputs: one raw example each (a text, a float array, an image); targets: array of shape [n], or [n, length] of a language-modelling task.
    """

    inputs: Sequence[Any]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Task:
    """What the model is for.

    collate(examples, padding): raw examples -> named input arrays, batch first, in the order the model takes them.
    score(outputs [n, ...], targets [n]): one float per example, higher is better; `exact` says it is only ever 0 or 1.
    fingerprint: hash of everything above, data included; caches are keyed by it.
    ref: what the user typed to name it. variable_length: whether `padding` changes the batch.
    parse: one raw input as text or a file's path -> an example (what `lissome run --input` takes).
    """

    name: str
    kind: str
    splits: Mapping[SplitName, Split]
    collate: Collate
    score: Score
    fingerprint: str
    ref: str
    exact: bool = True
    classes: tuple[str, ...] = ()
    variable_length: bool = False
    parse: Callable[[str], Any] | None = None
    notes: tuple[str, ...] = field(default=())

    def sizes(self) -> dict[SplitName, int]:
        """Examples per split."""
        return {name: len(split) for name, split in self.splits.items()}


def correct(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """1.0 where the largest output [n, classes] is the target's class [n], else 0.0."""
    import numpy as np

    hits: np.ndarray = (outputs.argmax(axis=-1) == targets).astype(np.float64)
    return hits
