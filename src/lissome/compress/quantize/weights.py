"""Scales of weights: per output channel, or per group of input channels, found by searching for the least squared error."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from lissome.core.quantization import LayerQuant, LayerScales

SHRINK = {4: 25, 7: 11, 8: 11}
"""Candidate ranges by bits, from 0.7 (8 bits; 0.4 for 4 bits) to 1 times the largest weight: the fewer levels, the more it pays to clip outliers."""


@torch.no_grad()
def weight_scales(weight: torch.Tensor, quant: LayerQuant) -> LayerScales:
    """Scales (and zero points where not symmetric) of weights [out, ...]: [out], or [out, groups]."""
    rows = grouped(weight.detach().float(), quant.group)
    low, high = quant.levels
    bits = (high - low + 2).bit_length() - 1
    if quant.symmetric:
        largest = rows.abs().amax(-1)
        floor, ceiling = -largest, largest
    else:
        floor, ceiling = rows.amin(-1).clamp_max(0), rows.amax(-1).clamp_min(0)
    best_error = torch.full_like(ceiling, torch.inf)
    best_scale, best_zero = torch.ones_like(ceiling), torch.zeros_like(ceiling)
    for share in torch.linspace(0.4 if bits == 4 else 0.7, 1.0, SHRINK[bits]).tolist():
        scale, zero = _steps(floor * share, ceiling * share, quant)
        q = torch.clamp(torch.round(rows / scale[..., None]) + zero[..., None], low, high)
        error = ((q - zero[..., None]) * scale[..., None] - rows).square().sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    zero_points = None if quant.symmetric else best_zero.to(torch.int32).cpu().numpy()
    return LayerScales(best_scale.cpu().numpy().astype(np.float32), zero_points)


def _steps(floor: torch.Tensor, ceiling: torch.Tensor, quant: LayerQuant) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point for a range; an empty range (all weights zero) gets the scale 1."""
    low, high = quant.levels
    scale = ceiling / high if quant.symmetric else (ceiling - floor) / (high - low)
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    zero = torch.zeros_like(scale) if quant.symmetric else torch.clamp(torch.round(low - floor / scale), low, high)
    return scale, zero


def grouped(weight: torch.Tensor, group: int | None) -> torch.Tensor:
    """Weights [out, ...] as rows that share a scale, as lissome.core.quantization.grouped does it in numpy."""
    flat = weight.reshape(len(weight), -1)
    if group is None:
        return flat
    return functional.pad(flat, (0, -flat.shape[1] % group)).reshape(len(flat), -1, group)
