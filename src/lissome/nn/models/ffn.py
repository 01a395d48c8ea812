"""Feed-forward networks of a block. Matrices of one name and shape mean the same in each, so that they are carried over when kinds are swapped."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from lissome.nn.ffn.activation import ACTIVATIONS, silenced
from lissome.nn.models.parts import Whole

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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


class Thresholded(nn.Module):
    """As Gated, with zeros where |activation(gate(x))|, or its product with up(x), is at most `threshold`.

    on: "gate" lets a kernel leave out rows of two of the three matrices (CATS, Lee et al. 2024), "product" of one (TEAL, Liu et al. 2024).
    """

    def __init__(
        self,
        width: int,
        inner: Whole,
        activation: Literal["gelu", "gelu_tanh", "relu", "relu2", "silu"] = "relu",
        threshold: Size = 0.0,
        on: Literal["gate", "product"] = "gate",
        bias: bool = False,
    ):
        super().__init__()
        self.activation, self.threshold, self.on = activation, threshold, on
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=bias), nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] -> [..., width]."""
        spoken, up = ACTIVATIONS[self.activation](self.gate_proj(x)), self.up_proj(x)
        inner = silenced(spoken, self.threshold) * up if self.on == "gate" else silenced(spoken * up, self.threshold)
        found: torch.Tensor = self.down_proj(inner)
        return found

    def extra_repr(self) -> str:
        """What the weights do not show."""
        return f"activation={self.activation}, threshold={self.threshold}, on={self.on}"
