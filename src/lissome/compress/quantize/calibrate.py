"""Ranges of activations, from calibration batches.

Two passes over the batches: the first finds the extremes, the second counts a histogram between them; so memory does not grow with the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from lissome.compress.batches import forward
from lissome.compress.quantize.config import Method, QuantizeConfig
from lissome.core.errors import BadModel
from lissome.core.progress import Progress, Silent
from lissome.core.quantization import ACTIVATION_HIGH, Range
from lissome.train.batches import Ordered

BINS = 2048
Side = Literal["input", "output"]
Point = tuple[str, Side]
"""A module's name, and whether what goes in or what comes out is meant."""


@dataclass(frozen=True)
class Seen:
    """What the first pass found. low, high: extremes by point. channels: greatest |input| per channel [in], for the points it was asked for."""

    low: dict[Point, float]
    high: dict[Point, float]
    channels: dict[str, torch.Tensor]


def calibrate(module: nn.Module, batches: Ordered, points: Iterable[Point], config: QuantizeConfig, progress: Progress | None = None) -> dict[Point, Range]:
    """The range of every point that was reached, by the config's method. Raises BadModel naming the layer where NaN or infinity appears."""
    progress, points = progress or Silent(), list(points)
    seen = extremes(module, batches, points, progress=progress)
    if config.method == "minmax":
        return {point: uint8_range(seen.low[point], seen.high[point]) for point in seen.low}
    counts = histograms(module, batches, seen, progress)
    found = {}
    for point, histogram in counts.items():
        low, high = METHODS[config.method](histogram, seen.low[point], seen.high[point], config.percentile)
        found[point] = uint8_range(low, high)
    return found


def uint8_range(low: float, high: float) -> Range:
    """Scale and zero point of uint8 so that [low, high] and zero fit; zero itself is exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / ACTIVATION_HIGH)
    if not scale > np.finfo(np.float32).tiny:
        return Range(1.0, 0)
    return Range(float(scale), int(np.clip(np.rint(-low / scale), 0, ACTIVATION_HIGH)))


def extremes(module: nn.Module, batches: Ordered, points: Iterable[Point], channels: Iterable[str] = (), progress: Progress | None = None) -> Seen:
    """Smallest and largest value at each point, and the greatest |input| per channel of the layers `channels`."""
    low: dict[Point, float] = {}
    high: dict[Point, float] = {}
    largest: dict[str, torch.Tensor] = {}

    def look(point: Point, value: torch.Tensor) -> None:
        least_value, most = (float(v) for v in torch.aminmax(value.float()))
        if not (math.isfinite(least_value) and math.isfinite(most)):
            raise BadModel(
                f"calibration met NaN or infinity in what {'goes into' if point[1] == 'input' else 'comes out of'} the layer {point[0]}.",
                do="look for NaN in the calibration data; if there is none, leave the layer before it in fp32, in `layers` (--layer NAME=fp32)",
            )
        low[point], high[point] = min(low.get(point, 0.0), least_value), max(high.get(point, 0.0), most)
        if point[1] == "input" and point[0] in wanted:
            per_channel = value.detach().abs().flatten(0, -2).amax(0)
            largest[point[0]] = torch.maximum(largest.get(point[0], per_channel), per_channel)

    wanted = set(channels)
    look_through(module, batches, list(points), look, "calibrate: extremes", progress)
    return Seen(low, high, largest)


def histograms(module: nn.Module, batches: Ordered, seen: Seen, progress: Progress | None = None) -> dict[Point, np.ndarray]:
    """Counts [2048] between the extremes of each point."""
    counts: dict[Point, torch.Tensor] = {}

    def look(point: Point, value: torch.Tensor) -> None:
        low, high = seen.low[point], seen.high[point]
        if not high > low:
            return
        # A loader that draws its examples anew may go beyond what the first pass saw.
        added = torch.histc(value.detach().float().clamp(low, high), BINS, low, high).double()
        counts[point] = counts[point] + added if point in counts else added

    look_through(module, batches, list(seen.low), look, "calibrate: histograms", progress)
    return {point: counts[point].numpy() if point in counts else np.zeros(BINS) for point in seen.low}


@torch.no_grad()
def look_through(
    module: nn.Module, batches: Ordered, points: list[Point], look: Callable[[Point, torch.Tensor], None], stage: str, progress: Progress | None
) -> None:
    """Run every batch through the module, with `look` called with each point and what passes there."""
    progress = progress or Silent()
    progress.stage(stage, len(batches) or None)
    handles = []
    for point in points:
        layer = module.get_submodule(point[0])
        if point[1] == "input":
            handles.append(layer.register_forward_pre_hook(lambda _, args, at=point: look(at, args[0])))
        else:
            handles.append(layer.register_forward_hook(lambda _, args, output, at=point: look(at, output)))
    try:
        for batch in batches.epoch(0):
            forward(module, batch)
            progress.step()
    finally:
        for handle in handles:
            handle.remove()


def centres(low: float, high: float) -> np.ndarray:
    """The middle of every bin."""
    edges = np.linspace(low, high, BINS + 1)
    middles: np.ndarray = (edges[1:] + edges[:-1]) / 2
    return middles


def percentile_range(counts: np.ndarray, low: float, high: float, percentile: float) -> tuple[float, float]:
    """The range outside of which `100 - percentile` percent of the values lie on each side."""
    if not counts.sum():
        return low, high
    share, edges = np.cumsum(counts) / counts.sum(), np.linspace(low, high, BINS + 1)
    first = int(np.searchsorted(share, 1 - percentile / 100, side="right"))
    last = int(np.searchsorted(share, percentile / 100, side="left"))
    return float(edges[min(first, BINS - 1)]), float(edges[min(last, BINS - 1) + 1])


def mse_range(counts: np.ndarray, low: float, high: float, percentile: float) -> tuple[float, float]:
    """The range with the least squared error of rounding and clipping, searched on a grid of shares of both ends."""
    if not counts.sum():
        return low, high
    values, best, found = centres(low, high), np.inf, (low, high)
    shares = np.linspace(0.2, 1.0, 25)
    for below in shares if low < 0 else (1.0,):
        for above in shares if high > 0 else (1.0,):
            kept = uint8_range(low * below, high * above)
            rounded = (np.clip(np.rint(values / kept.scale) + kept.zero, 0, ACTIVATION_HIGH) - kept.zero) * kept.scale
            error = float(counts @ np.square(rounded - values))
            if error < best:
                best, found = error, (low * below, high * above)
    return found


def entropy_range(counts: np.ndarray, low: float, high: float, percentile: float) -> tuple[float, float]:
    """The range whose clipped histogram diverges least (Kullback-Leibler) from its 256-level version (Migacz 2017, "8-bit inference with TensorRT")."""
    if not counts.sum():
        return low, high
    edges, best, found = np.linspace(low, high, BINS + 1), np.inf, (low, high)
    for share in np.linspace(0.1, 1.0, 91):
        first, last = np.searchsorted(edges, low * share, side="right") - 1, np.searchsorted(edges, high * share, side="left")
        inside = counts[first:last]
        if len(inside) < ACTIVATION_HIGH + 1:
            continue
        clipped = inside.copy()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last:].sum()
        divergence = _kl(clipped, _coarse(inside))
        if divergence < best:
            best, found = divergence, (float(edges[first]), float(edges[last]))
    return found


def _coarse(counts: np.ndarray) -> np.ndarray:
    """Counts merged into 256 levels and spread again over the bins that were not empty."""
    level = np.arange(len(counts)) * (ACTIVATION_HIGH + 1) // len(counts)
    total = np.bincount(level, counts, ACTIVATION_HIGH + 1)
    filled = np.bincount(level, counts > 0, ACTIVATION_HIGH + 1)
    spread: np.ndarray = np.where(counts > 0, (total / np.maximum(filled, 1))[level], 0.0)
    return spread


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) of two histograms, in nats; bins that only p fills count as if q had a ten-thousandth of an example there."""
    p, q = p / p.sum(), np.maximum(q, 1e-4) / np.maximum(q, 1e-4).sum()
    filled = p > 0
    return float(np.sum(p[filled] * np.log(p[filled] / q[filled])))


METHODS: dict[Method, Callable[[np.ndarray, float, float, float], tuple[float, float]]] = {
    "percentile": percentile_range,
    "mse": mse_range,
    "entropy": entropy_range,
}
