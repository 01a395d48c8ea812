"""The router: which experts a token takes, and with which weight. It computes in float32 whatever the model does, and each token for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lissome.core.errors import BadTensor
from lissome.nn.moe.config import MoEConfig


@dataclass(frozen=True)
class Routing:
    """index: [n, active] int64, the best expert first; weight: [n, active]; scores: [n, experts], of all of them. float32 (float64 for such inputs)."""

    index: torch.Tensor
    weight: torch.Tensor
    scores: torch.Tensor


class Router(nn.Module):
    """A linear layer over the experts. `bias` is added to the scores for choosing, and changed by `balance.rebalance` alone; `offset` to the logits."""

    bias: torch.Tensor

    def __init__(self, width: int, config: MoEConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.experts, width).normal_(std=width**-0.5))
        self.offset = nn.Parameter(torch.zeros(config.experts)) if config.offset else None
        self.register_buffer("bias", torch.zeros(config.experts))

    def forward(self, x: torch.Tensor) -> Routing:
        """Choose for tokens x [n, width]. Raises BadTensor where a logit is NaN or infinite."""
        kind = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            offset = None if self.offset is None else self.offset.to(kind)
            logits = functional.linear(x.to(kind), self.weight.to(kind), offset)
            return choose(logits, self.bias, self.config)

    def _apply(self, fn: Any, recurse: bool = True) -> Router:
        """Moves and casts; the bias stays in float32 at least, as a step of `rate` would be lost in half precision."""
        before = self.bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        wide = torch.promote_types(self.bias.dtype, torch.float32)
        if self.bias.dtype != wide:
            self.bias = (self.bias if before.is_meta else before).to(self.bias.device, wide)
        return self

    def extra_repr(self) -> str:
        """What the weights do not show."""
        config = self.config
        return f"active={config.active}, scores={config.scores}, weights={config.weights}, scale={config.scale!r}"


def choose(logits: torch.Tensor, bias: torch.Tensor, config: MoEConfig) -> Routing:
    """The routing that logits [n, experts] say. Of equal scores the expert that comes first is taken, whatever else is in the batch."""
    finite = torch.isfinite(logits).all(-1)
    if not bool(finite.all()):
        broken = int((~finite).sum())
        raise BadTensor(
            f"the router's logits hold NaN or infinity for {broken:,} of {len(logits):,} tokens",
            expected="finite numbers",
            do="look for NaN in the layers before it; in training, lower the learning rate",
        )
    scores = logits.softmax(-1) if config.scores == "softmax" else logits.sigmoid()
    with torch.no_grad():
        index = (scores + bias.to(scores.dtype)).sort(dim=-1, descending=True, stable=True).indices[:, : config.active]
    return Routing(index, config.scale * _weights(scores.gather(1, index), config), scores)


def _weights(chosen: torch.Tensor, config: MoEConfig) -> torch.Tensor:
    if config.weights == "scores":
        return chosen
    if config.weights == "normalised":
        return chosen / chosen.sum(-1, keepdim=True).clamp_min(torch.finfo(chosen.dtype).tiny)
    return torch.ones_like(chosen) + (chosen - chosen.detach())  # 1, with the score's gradient (straight through), so that the router learns


def switch_loss(scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """experts * sum of (share of the choices) * (mean probability), 1 where both are even (Fedus et al. 2021, equation 4).

    A token's several choices count as one. scores: [n, experts], of which the probabilities are the shares of each token's sum; index: [n, active].
    """
    experts = scores.shape[-1]
    share = torch.bincount(index.flatten(), minlength=experts).to(scores.dtype) / max(1, index.numel())
    probability = (scores / scores.sum(-1, keepdim=True)).mean(0)
    return experts * (share * probability).sum()
