"""Sensitivity: how far a change to one part of the model moves its outputs, where that is easiest to see.

Forward-only: no labels and no gradients, so it costs one pass over a few examples for every change tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lissome.core.cache import digest
from lissome.core.statistics import log_softmax
from lissome.core.task import Split
from lissome.optimize.batches import judging_order, part_of, scoring_batches
from lissome.optimize.bench import Bench, original_form, outputs
from lissome.optimize.options import ORIGINAL
from lissome.optimize.tables import computed

if TYPE_CHECKING:
    from torch import nn

    from lissome.core.model import Model
    from lissome.core.task import Task

HARDEST = 128


class Probe:
    """The hardest validation examples and what the original says of them. `loss(module)` is how far another module is from that.

    The hardest are those whose two likeliest classes are nearest to each other: a small change flips these first. Where the outputs are no classes,
    a seeded draw stands for all. fingerprint: of the examples and the original.
    """

    def __init__(self, task: Task, model: Model, outputs: np.ndarray, order: Sequence[int], seed: int = 0, count: int = HARDEST):
        """outputs: the original's on the validation examples `order` [n, ...], in that order."""
        picks = [order[i] for i in hardest(outputs, count, seed, classes=bool(task.classes))]
        split = part_of(task.splits["validation"], picks)
        self.fingerprint = digest(task.fingerprint, model.fingerprint, picks)
        self.classes = bool(task.classes)
        self.batches = scoring_batches(task, Split(split.inputs, split.targets)).batches
        self.reference = computed(model.module, self.batches)

    def loss(self, module: nn.Module) -> float:
        """Mean divergence of the module's outputs from the original's; infinite where they are not finite."""
        found = computed(module, self.batches)
        return float(divergence(self.reference, found, classes=self.classes).mean()) if np.isfinite(found).all() else float("inf")


def probe_of(bench: Bench) -> Probe:
    """The original on the hardest validation examples."""
    order = judging_order(bench.task, bench.seed)
    return Probe(bench.task, bench.model, outputs(bench, ORIGINAL, original_form(bench), "validation"), order, bench.seed)


def hardest(outputs: np.ndarray, count: int, seed: int = 0, *, classes: bool = True) -> list[int]:
    """Positions of the `count` examples whose two largest outputs [n, classes] are nearest; a seeded draw where outputs are no classes."""
    if classes and outputs.ndim == 2 and outputs.shape[1] > 1:
        top = np.partition(outputs, -2, axis=1)[:, -2:]
        picked: list[int] = np.argsort(top[:, 1] - top[:, 0], kind="stable")[:count].tolist()
        return picked
    drawn: list[int] = np.random.default_rng(seed).permutation(len(outputs))[:count].tolist()
    return drawn


def divergence(reference: np.ndarray, found: np.ndarray, *, classes: bool = True) -> np.ndarray:
    """How far outputs are from the reference's, per example [n]: KL(softmax(reference) || softmax(found)) in nats for classes [n, c], else the mean
    square distance over the reference's variance."""
    if not classes:
        spread = float(np.var(reference)) or 1.0
        apart: np.ndarray = np.mean((reference - found).reshape(len(reference), -1) ** 2, axis=1) / spread
        return apart
    p, q = (log_softmax(outputs.astype(np.float64)) for outputs in (reference, found))
    nats: np.ndarray = (np.exp(p) * (p - q)).sum(axis=1)
    return nats
