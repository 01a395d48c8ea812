"""Training models with experts: the balancing loss beside the task's, the biases nudged after each step, and the balance seen on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lissome.nn.moe.balance import balancing_loss, layers_of, rebalance
from lissome.nn.moe.watch import load_of
from lissome.train.callbacks import Callback, Run
from lissome.train.loop import Loss


def balanced(loss: Loss) -> Loss:
    """`loss` plus what the layers of experts ask for (`balance: switch`); the same as `loss` where they ask for nothing."""

    def total(module: nn.Module, batch: Any) -> torch.Tensor:
        found = loss(module, batch)
        extra = balancing_loss(module)
        return found if extra is None else found + extra.to(found.dtype)

    return total


class Balance(Callback):
    """Nudges the biases after every step (`balance: bias`) and keeps each step's imbalance.

    imbalance: a row a step: max over mean of the experts' load in that step's tokens, the worst layer's. It is left in the run's metrics too ("imbalance": mean
    of the last tenth of the steps).
    """

    def __init__(self) -> None:
        self.imbalance: list[float] = []

    def on_step(self, run: Run) -> None:
        """Read the loads, then rebalance."""
        loads = [load_of(layer.load.cpu().numpy()).max_over_mean for layer in layers_of(run.module)]
        if loads:
            self.imbalance.append(max(loads))
        rebalance(run.module)

    def on_end(self, run: Run) -> None:
        """Leave the mean of the last tenth."""
        last = self.imbalance[-max(1, len(self.imbalance) // 10) :]
        if last:
            run.metrics["imbalance"] = sum(last) / len(last)

    def state(self) -> dict[str, Any]:
        """The imbalance so far; the biases are in the module."""
        return {"imbalance": self.imbalance}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after it."""
        self.imbalance = state["imbalance"]
