"""A layer of experts that stands where a feed-forward network stood: forward(x [..., width]) -> [..., width]."""

from __future__ import annotations

import torch
from torch import nn

from lissome.nn.moe.config import MoEConfig
from lissome.nn.moe.experts import Experts, FeedForward
from lissome.nn.moe.packed import PackedExperts
from lissome.nn.moe.router import Router, switch_loss


class MoE(nn.Module):
    """A router and its experts, and one that every token takes where the configuration has one. Dropless: an expert takes every token that chose it.

    In training, `load` [experts] counts the choices since it was last read, and `auxiliary` is the last forward pass's balancing loss, where there is one.
    """

    load: torch.Tensor

    def __init__(self, width: int, config: MoEConfig):
        super().__init__()
        self.config, self.width = config, width
        self.router = Router(width, config)
        self.experts: nn.Module = PackedExperts(width, config) if config.group else Experts(width, config)
        self.shared = FeedForward(width, config.shared, config) if config.shared else None
        self.down_bias = nn.Parameter(torch.zeros(width)) if config.biases else None
        self.register_buffer("load", torch.zeros(config.experts, dtype=torch.int64), persistent=False)  # half precision cannot count past 2048
        self.auxiliary: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] -> [..., width]. Raises BadTensor where the router's logits are NaN or infinite."""
        flat = x.reshape(-1, x.shape[-1])
        routing = self.router(flat)
        if self.training:
            with torch.no_grad():
                self.load += torch.bincount(routing.index.flatten(), minlength=self.config.experts)
            wanted = self.config.balance == "switch" and self.config.strength and torch.is_grad_enabled()
            self.auxiliary = self.config.strength * switch_loss(routing.scores, routing.index) if wanted else None
        out: torch.Tensor = self.experts(flat, routing.index, routing.weight)
        if self.shared is not None:
            out = out + self.shared(flat)
        if self.down_bias is not None:
            out = out + self.down_bias
        return out.view_as(x)

    def extra_repr(self) -> str:
        """What the weights do not show."""
        config = self.config
        return f"active={config.active}, activation={config.activation}, gated={config.gated}, balance={config.balance}"
