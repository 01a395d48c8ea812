"""Feed-forward parts to build models of. Their matrices have transformers' names, so that weights carry over."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from lissome.nn.ffn.activation import Thresholded, activated, silenced

On = Literal["gate", "product"]


class GatedFFN(nn.Module):
    """down(act(gate x) * up x) (Shazeer 2020), with zeros where |act(gate x)|, or its product with up x, is at most `threshold`.

    width: of x; neurons: inside. on: what the threshold is held against: "gate" lets a kernel leave out two of the three matrices' rows (CATS), "product"
    one (TEAL, Liu et al. 2024).
    """

    def __init__(self, width: int, neurons: int, activation: str = "relu", threshold: float = 0.0, on: On = "gate"):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, neurons, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(neurons, width, bias=False)
        made = Thresholded(activated(activation), threshold)
        self.act_fn: nn.Module = made if on == "gate" else Thresholded(activated(activation))
        self.silence = made.threshold if on == "product" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., width] -> [..., width]."""
        inner = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(inner if self.silence is None else silenced(inner, self.silence))  # type: ignore[no-any-return]


class PlainFFN(nn.Module):
    """down(act(up x)), with zeros where |act(up x)| is at most `threshold`. width: of x; neurons: inside."""

    def __init__(self, width: int, neurons: int, activation: str = "relu2", threshold: float = 0.0, bias: bool = False):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, neurons, bias=bias), nn.Linear(neurons, width, bias=bias)
        self.act_fn = Thresholded(activated(activation), threshold)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., width] -> [..., width]."""
        return self.down_proj(self.act_fn(self.up_proj(x)))  # type: ignore[no-any-return]
