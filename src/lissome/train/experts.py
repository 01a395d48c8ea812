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
    """Nudges the biases after every step (`balance: bias`) and keeps what the experts were given.

    loads: a row a step of counts [layers, experts]. At the end the run's metrics have "imbalance": max over mean of the load in the last tenth of the steps, of
    the layer where it is worst.
    """

    def __init__(self) -> None:
        self.loads: list[torch.Tensor] = []

    def on_step(self, run: Run) -> None:
        """Read the loads, then rebalance."""
        found = [layer.load.detach().cpu().clone() for layer in layers_of(run.module)]
        if found:
            self.loads.append(torch.stack(found))
        rebalance(run.module)

    def on_end(self, run: Run) -> None:
        """Leave the imbalance of the last tenth."""
        if self.loads:
            run.metrics["imbalance"] = self.imbalance(len(self.loads) - max(1, len(self.loads) // 10), len(self.loads))

    def imbalance(self, first: int, last: int) -> float:
        """Max over mean of the load in the steps [first, last), the worst layer's."""
        summed = torch.stack(self.loads[first:last]).sum(0)
        return max(load_of(counts.numpy()).max_over_mean for counts in summed)

    def state(self) -> dict[str, Any]:
        """The loads so far; the biases are in the module."""
        return {"loads": self.loads}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after them."""
        self.loads = state["loads"]
