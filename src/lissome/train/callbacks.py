"""What can watch and steer a run, and the two that most runs want: a short history, and the best weights by a validation score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lissome.train.config import TrainConfig


@dataclass
class Run:
    """A run as its callbacks see it.

    total: steps it will take. step, epoch: done so far; position: batches read of the present epoch. loss, grad_norm, lr: of the last step
    (grad_norm before clipping; lr the largest of all groups). seconds: spent, over all resumptions. metrics: for callbacks to share.
    """

    module: nn.Module
    config: TrainConfig
    total: int
    step: int = 0
    epoch: int = 0
    position: int = 0
    loss: float = float("nan")
    grad_norm: float = float("nan")
    lr: float = 0.0
    seconds: float = 0.0
    stopped: str = ""
    precision: str = "fp32"
    why: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    def stop(self, why: str) -> None:
        """End the run after this step; the first reason stands."""
        self.stopped = self.stopped or why


class Callback:
    """Hooks of a run; override what you need.

    state: what must survive a kill, as plain values and tensors; restore takes it back before on_start of the resumed run.
    """

    def on_start(self, run: Run) -> None:
        """Before the first step of this process."""

    def on_step(self, run: Run) -> None:
        """After each update of the weights."""

    def on_epoch(self, run: Run) -> None:
        """After the last step of each whole epoch."""

    def on_end(self, run: Run) -> None:
        """After the last step, however the run ended; weights set here are the result."""

    def state(self) -> dict[str, Any]:
        """Nothing, unless overridden."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""


class History(Callback):
    """About `rows` rows of step, epoch, mean loss since the row before, gradient norm and learning rate."""

    def __init__(self, rows: int = 200):
        self.most, self.rows, self._losses = rows, list[dict[str, float]](), list[float]()

    def on_step(self, run: Run) -> None:
        """Note a row every total/rows steps and at the last."""
        self._losses.append(run.loss)
        if len(self._losses) >= max(1, run.total // self.most) or run.step == run.total:
            mean = sum(self._losses) / len(self._losses)
            self.rows.append({"step": run.step, "epoch": run.epoch, "loss": mean, "grad_norm": run.grad_norm, "lr": run.lr})
            self._losses = []

    def state(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows, "losses": self._losses}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after the rows so far."""
        self.rows, self._losses = state["rows"], state["losses"]


class KeepBest(Callback):
    """Evaluate every `every` steps (None: each epoch) and at the end, and leave the module with the best weights seen.

    evaluate(module) -> float is called in eval mode without gradients. patience: evaluations without progress after which the run stops.
    least: lower is better, as for a loss. An equal score does not replace the earlier weights.
    """

    def __init__(self, evaluate: Callable[[nn.Module], float], *, every: int | None = None, patience: int | None = None, least: bool = False):
        self.evaluate, self.every, self.patience, self.least = evaluate, every, patience, least
        self.score, self.step, self.seen, self.bad = float("nan"), -1, -1, 0
        self.scores: list[dict[str, float]] = []
        self._weights: dict[str, torch.Tensor] = {}

    def on_step(self, run: Run) -> None:
        """Evaluate where a step count was given."""
        if self.every and run.step % self.every == 0:
            self.look(run)

    def on_epoch(self, run: Run) -> None:
        """Evaluate, unless a step count was given."""
        if not self.every:
            self.look(run)

    def on_end(self, run: Run) -> None:
        """Evaluate the last weights if that was not done, and put the best ones in place."""
        if self.seen != run.step:
            self.look(run)
        if self.step != run.step:
            run.module.load_state_dict(self._weights)
        self._weights = {}

    def look(self, run: Run) -> None:
        """Evaluate now; keep the weights if they are the best so far."""
        training = run.module.training
        run.module.eval()
        with torch.no_grad():
            score = float(self.evaluate(run.module))
        run.module.train(training)
        self.seen = run.step
        self.scores.append({"step": run.step, "score": score})
        run.metrics["validation"] = score
        if self.step < 0 or (score < self.score if self.least else score > self.score):
            self.score, self.step, self.bad = score, run.step, 0
            self._weights = {name: tensor.detach().clone() for name, tensor in run.module.state_dict().items()}
        else:
            self.bad += 1
            if self.patience and self.bad >= self.patience:
                run.stop(f"no progress in {self.bad} evaluations since step {self.step}")

    def state(self) -> dict[str, Any]:
        """The best weights and the count of fruitless looks."""
        return {"best": [self.score, self.step, self.seen, self.bad], "scores": self.scores, "weights": self._weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as if the process had not ended."""
        self.score, self.step, self.seen, self.bad = state["best"]
        self.scores, self._weights = state["scores"], state["weights"]
