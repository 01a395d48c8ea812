"""Activations that are exactly zero where they are small."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from lissome.core.errors import BadConfig

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": functools.partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}
"""By the names that configurations use; relu2 is So et al. 2021 (Primer)."""
SAMPLE = 65536
"""Numbers of a batch that a quantile is taken of, about: a layer has millions. Were they drawn by lot, the quantile would be within 0.4 points of the batch's
(95 %); neighbours resemble one another and `evenly` may take fewer, so this is no bound."""


def activated(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation of that name. Raises BadConfig for another."""
    if name not in ACTIVATIONS:
        raise BadConfig(f'the activation "{name}" is not offered', expected=", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def check_threshold(value: float, where: str = "") -> float:
    """A threshold that can be one. Raises BadConfig for less than 0, NaN and infinity."""
    if not (math.isfinite(value) and value >= 0):
        raise BadConfig(f"a threshold of {value} is no size of an activation", where=where or None, expected="0 or more, and finite")
    return float(value)


def silenced(x: torch.Tensor, threshold: float | torch.Tensor) -> torch.Tensor:
    """x, and 0 where |x| <= threshold; a NaN stays one. The gradient is 1 where x is kept (CATS, Lee et al. 2024)."""
    return torch.where(x.abs() <= threshold, torch.zeros((), dtype=x.dtype, device=x.device), x)


class Thresholded(nn.Module):
    """act(x), and 0 where |act(x)| <= threshold. x of any shape."""

    def __init__(self, act: nn.Module | Callable[[torch.Tensor], torch.Tensor], threshold: float = 0.0):
        super().__init__()
        self.act, self.threshold = act, check_threshold(threshold)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The activations, of x's shape."""
        return silenced(self.act(x), self.threshold)

    def extra_repr(self) -> str:
        """For printing."""
        return f"threshold={self.threshold:g}"


class Tightening(nn.Module):
    """An activation while it learns to be sparse: the threshold follows the quantile that leaves a rising share of zeros.

    share: at the end; steps: forward passes over which it rises from 0, linearly; then it stays. The threshold is a running mean of the batches' quantiles and
    a buffer, so that a resumed run goes on with the same bits. penalty: the last batch's mean |act(x)| over the first's, for an L1 term.
    """

    threshold: torch.Tensor
    passes: torch.Tensor
    first: torch.Tensor

    def __init__(self, act: nn.Module | Callable[[torch.Tensor], torch.Tensor], share: float, steps: int, momentum: float = 0.9):
        super().__init__()
        self.act, self.share, self.steps, self.momentum = act, share, max(1, steps), momentum
        for name in ("threshold", "passes", "first"):
            self.register_buffer(name, torch.zeros(()))
        self.penalty: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The activations, of x's shape. In training the threshold moves first."""
        found = self.act(x)
        if self.training and torch.is_grad_enabled():
            self._tighten(found.detach())
            self.penalty = found.float().abs().mean() / self.first.clamp_min(torch.finfo(torch.float32).tiny)
        return silenced(found, self.threshold)

    def _tighten(self, found: torch.Tensor) -> None:
        if not self.passes:
            self.first.copy_(found.float().abs().mean())
        self.passes += 1
        now = self.share * min(1.0, float(self.passes) / self.steps)
        self.threshold.lerp_(magnitude(found, now), 1.0 if self.passes == 1 else 1 - self.momentum)


def evenly(x: torch.Tensor, most: int) -> torch.Tensor:
    """Numbers of x [..., neurons] at even steps, about `most` or fewer, flat. The step has no factor in common with the number of neurons: one
    that has would only ever meet the same few neurons.
    """
    step, neurons = max(1, x.numel() // most), x.shape[-1] if x.ndim else 1
    while math.gcd(step, neurons) > 1:
        step += 1
    return x.flatten()[::step]


def magnitude(x: torch.Tensor, share: float) -> torch.Tensor:
    """The size that the share of the numbers in x do not exceed; of many an evenly spread sample. 0 for a share of 0."""
    sizes = evenly(x.detach(), SAMPLE).float().abs()
    at = math.ceil(share * len(sizes))
    return sizes.kthvalue(at).values if at else sizes.new_zeros(())
