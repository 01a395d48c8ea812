"""Scales of weights: per output channel, or per group of input channels, found by searching for the least error."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from lissome.compress.quantize.grids import Grid, Rule, Search, find_grid
from lissome.core.quantization import LayerQuant, LayerScales


def weight_grid(weight: torch.Tensor, quant: LayerQuant, search: Search = "mse", importance: torch.Tensor | None = None) -> Grid:
    """The grids of weights [out, ...], each row taken as one line. importance: [columns], how much an error counts there."""
    return find_grid(weight.detach().float().reshape(len(weight), -1), quant.group, rule_of(quant), search, importance)


def rule_of(quant: LayerQuant) -> Rule:
    """The grids that a layer's weights may have."""
    low, high = quant.levels
    return Rule(low, high, quant.symmetric, whole=not quant.symmetric)


@torch.no_grad()
def weight_scales(weight: torch.Tensor, quant: LayerQuant, search: Search = "mse") -> LayerScales:
    """Scales (and zero points where not symmetric) of weights [out, ...]: [out], or [out, groups]."""
    return layer_scales(weight_grid(weight, quant, search), quant)


def layer_scales(grid: Grid, quant: LayerQuant) -> LayerScales:
    """A grid of `weight_grid` as scales and zero points."""
    scale, zero = grid.scale, torch.round(-grid.offset / grid.scale)
    if quant.group is None:
        scale, zero = scale[:, 0], zero[:, 0]
    zero_points = None if quant.symmetric else zero.to(torch.int32).cpu().numpy()
    return LayerScales(scale.cpu().numpy().astype(np.float32), zero_points)


def grouped(weight: torch.Tensor, group: int | None) -> torch.Tensor:
    """Weights [out, ...] as rows that share a scale, as lissome.core.quantization.grouped does it in numpy."""
    flat = weight.reshape(len(weight), -1)
    if group is None:
        return flat
    return functional.pad(flat, (0, -flat.shape[1] % group)).reshape(len(flat), -1, group)
