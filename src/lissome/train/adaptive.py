"""Adaptive precision: while a model trains, each linear and convolution layer computes in int8 (simulated), bf16 or fp32, as its gradient asks.

A layer whose mean gradient keeps changing from window to window is still searching and gets more precision; one whose gradient is steady does with less
(the article's "gradient change rate"). Weights stay float32 throughout, and so does evaluation.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lissome.core.errors import BadModel
from lissome.train.callbacks import Callback, Run
from lissome.train.config import LEVELS, AdaptiveConfig

WATCHED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

SAMPLE = 4096
"""Weights of a layer whose gradient is watched, evenly spread: two windows of a large model's whole gradient would take twice its memory."""


class AdaptivePrecision(Callback):
    """Watches the gradient of every linear and convolution layer of `module` and moves the layer among precisions.

    levels: the present precision of each layer. moves: step, layer, from, to, and the change that led to it. Attached when the run starts, taken off
    when it ends; after an error call `detach`. The state is in the checkpoints. Raises BadModel for a module without such layers.
    """

    def __init__(self, module: nn.Module, config: AdaptiveConfig | None = None):
        self.config = config or AdaptiveConfig()
        self.layers: dict[str, Any] = {
            name: layer
            for name, layer in module.named_modules()
            if isinstance(layer, WATCHED) and layer.weight.requires_grad and not any(fnmatchcase(name, pattern) for pattern in self.config.skip)
        }
        if not self.layers:
            raise BadModel(
                "there is no linear or convolution layer to adapt: all are frozen, skipped, or of other kinds.", do="train without adaptive precision"
            )
        self.levels = dict.fromkeys(self.layers, str(self.config.start))
        self.moves: list[dict[str, Any]] = []
        self.changes: dict[str, float] = {}
        self._streak = dict.fromkeys(self.layers, 0)
        self._sum: dict[str, torch.Tensor] = {}
        self._before: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = []

    def on_start(self, run: Run) -> None:
        """Take over the layers' forward passes."""
        for name, layer in self.layers.items():
            layer.forward = self._forward(name, layer)
            self._handles.append(layer.weight.register_hook(self._watch(name, layer.weight)))

    def on_step(self, run: Run) -> None:
        """At the end of a window, decide."""
        if run.step % self.config.window == 0:
            self.decide(run.step)

    def on_end(self, run: Run) -> None:
        """Give the layers their own forward passes back."""
        self.detach()

    def detach(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()
        for layer in self.layers.values():
            layer.__dict__.pop("forward", None)
        self._handles = []

    def decide(self, step: int) -> None:
        """Compare this window's mean gradients with those before, and move the layers that agreed with themselves often enough."""
        for name, total in self._sum.items():
            before = self._before.get(name)
            self._before[name] = total
            if before is None:
                continue
            self.changes[name] = change = change_between(before, total)
            streak = self._streak[name]
            streak = max(streak, 0) + 1 if change >= self.config.up else min(streak, 0) - 1 if change <= self.config.down else 0
            self._streak[name] = self._moved(name, step, streak, change)
        self._sum = {}

    def counts(self) -> dict[str, int]:
        """How many layers compute in each precision now."""
        found = Counter(self.levels.values())
        return {level: found[level] for level in LEVELS}

    def sentence(self) -> str:
        """The outcome in a few words."""
        counts = ", ".join(f"{count} {level}" for level, count in self.counts().items() if count)
        return f"precision by layer at the end: {counts} of {len(self.layers)}, after {len(self.moves)} moves"

    def state(self) -> dict[str, Any]:
        """Levels, moves, and the windows so far."""
        return {
            "levels": self.levels,
            "moves": self.moves,
            "changes": self.changes,
            "streak": self._streak,
            "sum": self._sum,
            "before": self._before,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as if the process had not ended."""
        self.levels, self.moves, self.changes = state["levels"], state["moves"], state["changes"]
        self._streak, self._sum, self._before = state["streak"], state["sum"], state["before"]

    def _moved(self, name: str, step: int, streak: int, change: float) -> int:
        """Move the layer if its streak is long enough; the streak that is left."""
        at, lowest = LEVELS.index(self.levels[name]), LEVELS.index(self.config.lowest)
        to = at + 1 if streak >= self.config.patience else at - 1 if streak <= -self.config.patience else at
        to = min(max(to, lowest), len(LEVELS) - 1)
        if to == at:
            return max(-self.config.patience, min(streak, self.config.patience))
        self.moves.append({"step": step, "layer": name, "from": LEVELS[at], "to": LEVELS[to], "change": round(change, 4)})
        self.levels[name] = LEVELS[to]
        return 0

    def _watch(self, name: str, weight: torch.Tensor) -> Callable[[torch.Tensor], None]:
        picks = torch.linspace(0, weight.numel() - 1, min(SAMPLE, weight.numel()), dtype=torch.float64).round().long()

        def note(gradient: torch.Tensor) -> None:
            sample = gradient.detach().flatten()[picks.to(gradient.device)].float().cpu()
            self._sum[name] = sample if name not in self._sum else self._sum[name] + sample

        return note

    def _forward(self, name: str, layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        """The layer's forward pass in its present precision; its own in eval mode."""
        own: Callable[[torch.Tensor], torch.Tensor] = layer.forward

        @functools.wraps(own)
        def forward(x: torch.Tensor) -> torch.Tensor:
            if not layer.training:
                return own(x)
            level = self.levels[name]
            with torch.autocast(x.device.type, torch.bfloat16, enabled=level == "bf16"):
                if level == "bf16":
                    return own(x).to(x.dtype)
                if level == "fp32":
                    return own(x.float()).to(x.dtype)
                return _simulated(layer, x.float()).to(x.dtype)

        return forward


def change_between(before: torch.Tensor, after: torch.Tensor) -> float:
    """|after - before| / (|after| + |before|): how much of two vectors' length is change, from 0 (equal) to 1."""
    lengths = float(after.norm() + before.norm())
    return float((after - before).norm()) / lengths if lengths > 0 else 0.0


def fake_int8(x: torch.Tensor, per_row: bool = False) -> torch.Tensor:
    """`x` rounded to 255 even steps around zero, of the whole tensor or of each of its rows; the gradient passes as if nothing had been rounded."""
    dims = tuple(range(1, x.ndim)) if per_row else tuple(range(x.ndim))
    scale = x.detach().abs().amax(dim=dims, keepdim=True).clamp_min(1e-12) / 127
    rounded = (x.detach() / scale).round().clamp(-127, 127) * scale
    return x + (rounded - x.detach())


def _simulated(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The layer on inputs and weights (per output) rounded to 8 bits."""
    weight = fake_int8(layer.weight.float(), per_row=True)
    if isinstance(layer, nn.Linear):
        return functional.linear(fake_int8(x), weight, layer.bias)
    computed: torch.Tensor = layer._conv_forward(fake_int8(x), weight, layer.bias)
    return computed
