"""Which experts tokens take, while a model runs: counts by layer and window, and what they say of the balance."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from lissome.core.errors import BadModel
from lissome.nn.moe.in_transformers import is_experts


@dataclass(frozen=True)
class Load:
    """How evenly a layer's experts are used. counts: choices of each. entropy: of the load, as a share of log(experts): 1 is even, 0 is one expert."""

    counts: tuple[int, ...]
    max_over_mean: float
    entropy: float
    dead: tuple[int, ...]


def load_of(counts: np.ndarray) -> Load:
    """What the counts [experts] of choices say; an expert that nobody chose is dead. Without any choice the load is even and all are dead."""
    counts = np.asarray(counts)
    total, experts = counts.sum(), len(counts)
    shares = counts[counts > 0] / max(1, total)
    entropy = -float((shares * np.log(shares)).sum()) / math.log(experts) if experts > 1 and total else 1.0
    dead = tuple(int(at) for at in np.flatnonzero(counts == 0))
    return Load(tuple(map(int, counts)), float(counts.max() * experts / total) if total else 1.0, entropy, dead)


@dataclass
class Watched:
    """Choices of every call. calls: layer -> a row of counts [experts] for each call of the layer, in order."""

    calls: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def counts(self) -> dict[str, np.ndarray]:
        """Layer -> counts [calls, experts]."""
        return {name: np.stack(rows) for name, rows in self.calls.items() if rows}

    def loads(self) -> dict[str, Load]:
        """Layer -> its load over all calls."""
        return {name: load_of(rows.sum(0)) for name, rows in self.counts().items()}


def expert_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold experts, by name: those of this package and those of transformers. Raises BadModel where there is none."""
    found = {name: one for name, one in model.named_modules() if is_experts(one)}
    if not found:
        raise BadModel(
            f"{type(model).__name__} has no experts: all of its feed-forward networks are dense",
            expected="a model with a mixture of experts",
            do="split its feed-forward networks first: lissome split-experts MODEL --experts 16 --active 4 --out DIR",
        )
    return found


@contextlib.contextmanager
def watching(model: nn.Module) -> Iterator[Watched]:
    """Note the choices of all experts in `model` while it runs. Raises BadModel where it has none."""
    layers = expert_layers(model)
    watched = Watched({name: [] for name in layers})
    handles = [one.register_forward_pre_hook(_noting(watched.calls[name]), with_kwargs=True) for name, one in layers.items()]
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


def _noting(rows: list[np.ndarray]) -> Any:
    def note(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = [one for one in (*arguments, *named.values()) if isinstance(one, torch.Tensor) and not one.is_floating_point()]
        index = given[0].flatten()
        rows.append(torch.bincount(index[index < module.num_experts], minlength=module.num_experts).cpu().numpy())

    return note
