"""Feed-forward networks of a block. Matrices of one name and shape mean the same in each, so that they are carried over when kinds are swapped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from lissome.nn.models.parts import Whole

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": functools.partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


class Dense(nn.Module):
    """down(activation(up(x))), with biases by default (Vaswani et al. 2017)."""

    def __init__(self, width: int, inner: Whole, activation: Activation = "gelu", bias: bool = True):
        super().__init__()
        self.activation = activation
        self.up_proj, self.down_proj = nn.Linear(width, inner, bias=bias), nn.Linear(inner, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] -> [..., width]."""
        found: torch.Tensor = self.down_proj(ACTIVATIONS[self.activation](self.up_proj(x)))
        return found

    def extra_repr(self) -> str:
        """What the weights do not show."""
        return f"activation={self.activation}"


class Gated(nn.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, width: int, inner: Whole, activation: Activation = "silu", bias: bool = False):
        super().__init__()
        self.activation = activation
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=bias), nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] -> [..., width]."""
        found: torch.Tensor = self.down_proj(ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))
        return found

    def extra_repr(self) -> str:
        """What the weights do not show."""
        return f"activation={self.activation}"


class ReluSquared(nn.Module):
    """down(relu(up(x))^2) (So et al. 2021): most of the inner values are exactly zero."""

    def __init__(self, width: int, inner: Whole, bias: bool = False):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, inner, bias=bias), nn.Linear(inner, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] -> [..., width]."""
        found: torch.Tensor = self.down_proj(functional.relu(self.up_proj(x)).square())
        return found
