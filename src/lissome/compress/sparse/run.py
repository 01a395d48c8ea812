"""Sparse training: weights become zero while the model trains, on a rising schedule, and stay so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.compress.sparse.config import SparseConfig
from lissome.compress.sparse.masks import masks, misfit
from lissome.core.cache import digest
from lissome.core.errors import BadModel
from lissome.core.model import Model
from lissome.core.progress import Progress
from lissome.nn.load import as_model, finished
from lissome.train.callbacks import Callback, KeepBest, Run
from lissome.train.config import TrainConfig
from lissome.train.loop import Loss, TrainResult, train

SPARSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weights may become zero."""


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros of one layer's weight. left: why the layer was left dense, or ""."""

    name: str
    weights: int
    zeros: int
    left: str = ""

    @property
    def share(self) -> float:
        """Share of zeros."""
        return self.zeros / self.weights if self.weights else 0.0


def sparse_train(
    model: Model | nn.Module,
    loss: Loss,
    batches: Any,
    config: SparseConfig,
    training: TrainConfig,
    *,
    validate: Callable[[nn.Module], float] | None = None,
    resume: Path | None = None,
    progress: Progress | None = None,
    done: Callable[[TrainResult, KeepBest | None], None] | None = None,
) -> Model:
    """A copy of `model` trained by `loss(module, batch)` whose weights hold the zeros that `config` asks for; the model given is not changed.

    batches: a list, a DataLoader, or lissome's Batches. validate(module): a score, higher is better, looked at after each epoch once the zeros are
    fixed; the best weights are returned, else the last. resume: folder for checkpoints; a killed run goes on from there with the same bits.
    done(result, best): called with what the run did. `sparsity_of` reports the layers.
    Raises BadModel when no layer can take the pattern, Diverged for a loss that is not finite, BadConfig where `resume` holds another model's run
    or one of another config, and what `train` raises.
    """
    start = model if isinstance(model, Model) else as_model(copy.deepcopy(model))
    module = copy.deepcopy(start.module) if isinstance(model, Model) else start.module
    zeroing = Zeroing(sparse_weights(module, config), config)
    best = BestOfFixed(validate, zeroing) if validate else None
    callbacks, identity = [zeroing, best] if best else [zeroing], digest("sparse", config.model_dump(mode="json"), start.fingerprint)
    with zeroing:
        result = train(module, batches, loss, training, callbacks=callbacks, resume=resume, progress=progress, identity=identity)
    zeroing.apply()
    if done:
        done(result, best)
    return finished(module, start.architecture, start.ref, start.directory)


def sparse_weights(module: nn.Module, config: SparseConfig) -> dict[str, nn.Parameter]:
    """Weights of the layers that take the pattern, by the layer's name. Raises BadModel when there is none."""
    layers = dict(module.named_modules())
    chosen = {row.name: layers[row.name].weight for row in sparsity_of(module, config) if not row.left}
    if not chosen:
        left = "; ".join(f"{row.name}: {row.left}" for row in sparsity_of(module, config)[:5])
        raise BadModel(
            f'no layer can take the pattern "{config.pattern}". {left}', expected="linear or convolution layers", do="lower `least`, or another pattern"
        )
    return chosen


def sparsity_of(model: Model | nn.Module, config: SparseConfig | None = None) -> list[LayerSparsity]:
    """Zeros of every linear and convolution layer; with a config, also why a layer is left dense under it."""
    module = model.module if isinstance(model, Model) else model
    holders: dict[int, list[str]] = {}
    for name, layer in module.named_modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(name)
    rows = []
    for name, layer in module.named_modules():
        if isinstance(layer, SPARSE):
            weight: torch.Tensor = layer.weight
            others = [other for other in holders[id(layer.weight)] if other != name]
            left = _left(name, layer, others, config) if config else ""
            rows.append(LayerSparsity(name, weight.numel(), int((weight == 0).sum()), left))
    return rows


def _left(name: str, layer: Any, others: list[str], config: SparseConfig) -> str:
    """Why a layer is left dense, or ""."""
    if any(fnmatchcase(name, pattern) for pattern in config.skip):
        return "as configured"
    if layer.weight.numel() < config.least:
        return f"it has fewer than {config.least:,} weights"
    if others:
        return f"its weight is shared with {others[0]}"
    if not layer.weight.requires_grad:
        return "it is frozen"
    return misfit(layer.weight.shape, config.shape)


class Zeroing(Callback):
    """Chooses the zeros as training goes on, and puts them back after every step.

    A context: within it the gradients of zeros are zero (they do not count in clipping) and, for saliency "gradient", scores are gathered.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], config: SparseConfig):
        self.weights, self.config, self.fixed = dict(weights), config, False
        self.masks: dict[str, torch.Tensor] = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        gathered = config.saliency == "gradient"
        self.scores: dict[str, torch.Tensor] = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()} if gathered else {}
        self._handles: list[Any] = []

    def __enter__(self) -> Zeroing:
        for name, weight in self.weights.items():
            self._handles.append(weight.register_hook(self._hook(name, weight)))  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def on_start(self, run: Run) -> None:
        """Bring masks of an earlier life to where the weights are."""
        self._move()
        self.apply()

    def on_step(self, run: Run) -> None:
        """Choose anew where it is time, and put the zeros back."""
        last = run.step / run.total >= self.config.end
        if not self.fixed and (last or run.step % self.config.every == 0):
            self.choose(1.0 if last else run.step / run.total)
        self.fixed = self.fixed or last
        self.apply()

    def on_end(self, run: Run) -> None:
        """A run that stopped early gets its zeros all the same."""
        if not self.fixed:
            self.choose(1.0)
            self.fixed = True
        self.apply()

    def choose(self, done: float) -> None:
        """Masks for the share of zeros that is due when `done` of the run is over."""
        self._move()
        share = self.config.share(done)
        if share > 0:
            scores = self.scores or {name: weight.detach().abs() for name, weight in self.weights.items()}
            self.masks = masks(scores, self.config.shape, share, self.config.scope == "global")

    def apply(self) -> None:
        """Put the zeros in place."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.mul_(self.masks[name])

    def state(self) -> dict[str, Any]:
        """Masks and scores."""
        return {"masks": self.masks, "scores": self.scores, "fixed": self.fixed}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self.masks, self.scores, self.fixed = state["masks"], state["scores"], state["fixed"]

    def _move(self) -> None:
        for held in (self.masks, self.scores):
            for name in held:
                held[name] = held[name].to(self.weights[name].device)

    def _hook(self, name: str, weight: nn.Parameter) -> Callable[[torch.Tensor], torch.Tensor]:
        def gate(gradient: torch.Tensor) -> torch.Tensor:
            if self.scores:
                self.scores[name] -= (weight.detach() * gradient).float()
            return gradient * self.masks[name]

        return gate


class BestOfFixed(KeepBest):
    """The best weights by validation once the zeros are fixed: before that, they are not yet what was asked for.

    It stands behind `zeroing` among the callbacks, so that a run that stops early is looked at when its zeros are there.
    """

    def __init__(self, evaluate: Callable[[nn.Module], float], zeroing: Zeroing):
        super().__init__(evaluate)
        self.zeroing = zeroing

    def look(self, run: Run) -> None:
        """Evaluate, unless the zeros still change."""
        if self.zeroing.fixed:
            super().look(run)
