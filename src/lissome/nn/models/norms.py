"""Normalisation over the width."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

Epsilon = Annotated[float, Field(gt=0)]


def rms(width: int, eps: Epsilon = 1e-6) -> nn.RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019)."""
    return nn.RMSNorm(width, eps=eps)


def layer(width: int, eps: Epsilon = 1e-5, bias: bool = True) -> nn.LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016)."""
    return nn.LayerNorm(width, eps=eps, bias=bias)
