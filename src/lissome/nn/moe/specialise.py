"""What experts do: how evenly they are used, and which texts each of them is chosen for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lissome.core.errors import BadInput
from lissome.core.progress import Progress, Silent
from lissome.core.statistics import Dependence, dependences
from lissome.nn.call import call
from lissome.nn.moe.watch import Load, load_of, watching


@dataclass(frozen=True)
class LayerUse:
    """One layer. shares: domain -> of all choices in its texts, the share of each expert. dependence: whether the choice depends on the domain."""

    name: str
    load: Load
    shares: Mapping[str, tuple[float, ...]]
    dependence: Dependence


@dataclass(frozen=True)
class ExpertUse:
    """All layers with experts, in the model's order, on `windows` windows of each domain and `tokens` tokens in all."""

    layers: tuple[LayerUse, ...]
    windows: Mapping[str, int]
    tokens: int

    @property
    def strongest(self) -> LayerUse:
        """The layer that lies furthest from what chance gives it; its `dependence.p_family` allows for its having been picked."""
        return max(self.layers, key=lambda one: one.dependence.deviations)


def expert_use(
    model: nn.Module, windows: Mapping[str, Sequence[np.ndarray]], confidence: float = 0.95, progress: Progress | None = None, draws: int = 1000
) -> ExpertUse:
    """Run `model` on each domain's windows of token ids and note who is chosen; the test of independence permutes whole windows, which should share no text.

    Raises BadModel for a model without experts, BadInput for fewer than two domains.
    """
    if len(windows) < 2:
        raise BadInput(f"{len(windows)} domains cannot be compared", expected="at least 2")
    progress = progress or Silent()
    domains = [name for name, every in windows.items() for _ in every]
    rows = [one for every in windows.values() for one in every]
    with watching(model) as watched:  # first, as it says where there are no experts
        progress.stage("watching the experts", len(rows))
        with torch.no_grad():
            for one in rows:
                call(model, {"input_ids": torch.from_numpy(np.asarray(one, dtype=np.int64))[None]})
                progress.step(1)
    groups = np.array(domains)
    every_layer = watched.counts()
    for name, counts in every_layer.items():
        if len(counts) != len(rows):
            raise BadInput(f"{name} ran {len(counts)} times on {len(rows)} windows, so what it chose cannot be told by window")
    layers = []
    for (name, counts), test in zip(every_layer.items(), dependences(list(every_layer.values()), groups, confidence, draws=draws), strict=True):
        by_domain = {domain: counts[groups == domain].sum(0) for domain in windows}
        shares = {domain: tuple((one / max(1, one.sum())).tolist()) for domain, one in by_domain.items()}
        layers.append(LayerUse(name, load_of(counts.sum(0)), shares, test))
    return ExpertUse(tuple(layers), {name: len(every) for name, every in windows.items()}, sum(len(one) for one in rows))
