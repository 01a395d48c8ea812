"""How much faster the sparse forward pass is than the dense one, on a task's longest examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lissome.compress.batches import forward
from lissome.core.measurement import Measurement
from lissome.core.task import Task
from lissome.machine.identity import identify
from lissome.machine.interleave import interleave, speedup
from lissome.train.batches import Batches

EXAMPLES = 2
"""Longest examples that are timed, each by itself and so without padding."""


def longest(task: Task) -> tuple[list[dict[str, Any]], list[int]]:
    """Batches of one with the longest validation examples, and their lengths."""
    batches = Batches(task, "validation", 1, shuffle=False)
    rows = np.argsort(batches.lengths, kind="stable")[::-1][:EXAMPLES]
    return [batches.batch([row]) for row in rows], [int(batches.lengths[row]) for row in rows]


def times_faster(dense: nn.Module, sparse: nn.Module, batches: Sequence[Mapping[str, Any]], seconds: float) -> Measurement:
    """Time of the dense forward passes over that of the sparse ones, taken in turn; unit "x"."""

    def passes(module: nn.Module) -> None:
        with torch.inference_mode():
            for batch in batches:
                forward(module, batch)

    taken = interleave({"dense": lambda: passes(dense), "sparse": lambda: passes(sparse)}, seconds)
    return speedup(taken["dense"], taken["sparse"], identify().fingerprint)
