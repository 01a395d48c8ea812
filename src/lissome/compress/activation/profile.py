"""Which thresholds leave which share of zeros, how many zeros there are, and how many multiplications that saves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lissome.compress.batches import forward
from lissome.core.errors import BadModel
from lissome.core.measurement import Measurement
from lissome.core.statistics import achieved_confidence, median_interval
from lissome.machine.identity import identify
from lissome.nn.ffn import feed_forwards, watching
from lissome.nn.ffn.activation import evenly

On = Literal["gate", "product"]
EACH = 8192
"""Activations of an example and a layer that thresholds are chosen by, about, evenly spread."""


@dataclass(frozen=True)
class LayerZeros:
    """One layer. threshold: in use; zeros: share of its activations that are 0, %, the median of examples with its interval; silent: all were, always.

    mean: of the examples' shares, %, by which multiplications are counted.
    """

    layer: int
    threshold: float
    zeros: Measurement
    silent: bool
    mean: float


@torch.no_grad()
def thresholds_for(module: nn.Module, batches: Iterable[Any], shares: Sequence[float], on: On = "gate") -> list[tuple[float, ...]]:
    """For each share, a threshold per layer that so many of the layer's activations do not exceed, over all examples.

    module: with a plan of thresholds 0. Raises BadModel where an activation is NaN.
    """
    seen: dict[int, list[torch.Tensor]] = {}

    def see(at: int, values: torch.Tensor) -> None:
        seen.setdefault(at, []).append(evenly(values, EACH).float().abs())

    with watching(module, see, on):
        for batch in batches:
            forward(module, batch)
    whole = [torch.cat(seen[at]) for at in sorted(seen)]
    for at, sizes in enumerate(whole):
        if not bool(torch.isfinite(sizes).all()):
            raise BadModel(f"the activations of feed-forward part {at} hold NaN or infinity", do="look for NaN in the data and in the layers before it")
    return [tuple(_exact(sizes, share) for sizes in whole) for share in shares]


def _exact(sizes: torch.Tensor, share: float) -> float:
    at = round(share * len(sizes))
    return float(sizes.kthvalue(at).values) if at else 0.0


@torch.no_grad()
def zeros(module: nn.Module, batches: Iterable[Any], thresholds: Sequence[float], on: On = "gate") -> tuple[LayerZeros, ...]:
    """The share of zeros of every layer, with intervals over examples. batches: one example each, without padding."""
    found: dict[int, list[float]] = {}
    with watching(module, lambda at, values: found.setdefault(at, []).append(float((values == 0).double().mean())), on):
        for batch in batches:
            forward(module, batch)
    machine = identify().fingerprint

    def layer(at: int) -> LayerZeros:
        shares = found[at]
        value, low, high = (100 * one for one in median_interval(shares))
        level = min(0.95, achieved_confidence(len(shares)))
        measured = Measurement("zeros", value, low, high, "%", len(shares), "measured", machine, level)
        return LayerZeros(at, thresholds[at], measured, min(shares) == 1.0, 100 * sum(shares) / len(shares))

    return tuple(layer(at) for at in sorted(found))


def multiplications(module: nn.Module, layers: Sequence[LayerZeros], on: On = "gate") -> float:
    """Multiplications of the feed-forward parts as a share of the dense model's, counted, when what is zero is left out (see `kernels.decoder.ffn`).

    A gated part does a third for the gate; zeros of the gate spare a row of `up` and one of `down`, zeros of the product one of `down` alone.
    """
    dense = done = 0.0
    for part, layer in zip(feed_forwards(module), layers, strict=True):
        width, neurons = part.sizes
        spoken = 1 - layer.mean / 100
        matrices = 3 if part.gated else 2
        always = 1 if on == "gate" or not part.gated else 2
        dense += width * neurons * matrices
        done += width * neurons * (always + (matrices - always) * spoken)
    return done / dense
