"""Changes of the float weights that leave the function as it is: batch norms absorbed into convolutions, and sizes moved from activations into weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lissome.compress.batches import forward
from lissome.compress.quantize.wiring import NOTHING, RESHAPES, Node, Wiring, beyond, feeds_only, operator, source

EXACT = 1e-3
"""Largest relative change of the outputs that float32 rounding may cause; more means that the data flow was misread, and the change is undone."""

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


@torch.no_grad()
def absorb_norms(module: nn.Module, wiring: Wiring) -> dict[str, str]:
    """Move each batch norm that follows a convolution into its weights, in place; return convolution -> batch norm.

    The norm stays where it was, as a mere offset (weight 1, mean 0, variance 1 - eps), so that the module's architecture does not change.
    """
    layers = dict(module.named_modules())
    absorbed: dict[str, str] = {}
    for name, layer in layers.items():
        node = wiring.only_call(name) if isinstance(layer, nn.Conv1d | nn.Conv2d) else None
        user = next(iter(node.users)) if node is not None and len(node.users) == 1 else None
        norm_name = wiring.layer.get(user, "") if user is not None else ""
        norm = layers.get(norm_name)
        if not isinstance(norm, BatchNorm) or norm.running_var is None or norm.running_mean is None or norm.bias is None or wiring.only_call(norm_name) is None:
            continue
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        norm.bias.add_(factor * ((0 if layer.bias is None else layer.bias) - norm.running_mean))
        layer.weight *= factor.view(-1, *[1] * (layer.weight.ndim - 1))
        if layer.bias is not None:
            layer.bias.zero_()
        norm.weight.fill_(1)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        absorbed[name] = norm_name
    return absorbed


@dataclass(frozen=True)
class Fold:
    """A layer whose outputs are divided by a factor per channel, and the linear layers that multiply by it again."""

    source: str
    targets: tuple[str, ...]


def folds(module: nn.Module, wiring: Wiring, names: Iterable[str]) -> Iterator[Fold]:
    """Where sizes can be moved exactly into one of the linear layers `names`: from a norm or linear layer that feeds nothing else.

    Seen are norms with weights before linear layers, a linear layer before another (a ReLU between them at most), and the values of an attention
    before its output projection: attention weighs rows, so it leaves the channels apart.
    """
    wanted, seen = dict.fromkeys(names), set()  # in order: where folds chain, another order gives other weights
    layers = dict(module.named_modules())

    def is_target(node: Node) -> bool:
        return operator(node) == "linear" and wiring.layer.get(node) in wanted and wiring.only_call(wiring.layer[node]) is not None

    for name in wanted:
        node = wiring.only_call(name)
        made = node.args[0] if node is not None and operator(node) == "linear" else None
        while isinstance(made, Node) and operator(made) in (*NOTHING, "relu", "relu_"):
            made = made.args[0]
        origin = wiring.layer.get(made, "") if isinstance(made, Node) else ""
        if isinstance(made, Node) and origin and origin not in seen and operator(made) in ("layer_norm", "linear", "mul"):
            passing = NOTHING if operator(made) == "layer_norm" else (*NOTHING, "relu", "relu_")
            if wiring.only_call(origin) is made and feeds_only(made, passing, is_target):
                seen.add(origin)
                yield Fold(origin, tuple(sorted({wiring.layer[user] for user in beyond(made, passing)})))
            continue
        attention = source(node.args[0], RESHAPES) if node is not None and operator(node) == "linear" else None
        if attention is None or operator(attention) != "scaled_dot_product_attention":
            continue
        values = source(attention.args[2], RESHAPES)
        origin = wiring.layer.get(values, "") if values is not None and operator(values) == "linear" else ""
        if origin and isinstance(layers.get(origin), nn.Linear) and wiring.only_call(origin) is values:
            yield Fold(origin, (name,))


@torch.no_grad()
def smooth(module: nn.Module, batch: Any, found: Iterable[Fold], largest: Mapping[str, torch.Tensor], alpha: float) -> list[Fold]:
    """Apply folds in place; return those that were. largest: layer -> greatest |input| per channel [in].

    Channel j is divided by s_j = max|x_j|^alpha / max|w_j|^(1 - alpha) in the source and multiplied in the targets (Xiao et al. 2022, equation 4).
    A fold after which the outputs on `batch` are others is undone.
    """
    applied = []
    before = forward(module, batch)
    for fold in found:
        targets: list[Any] = [module.get_submodule(name) for name in fold.targets]
        activations = torch.stack([largest[name] for name in fold.targets]).amax(0)
        weights = torch.stack([layer.weight.abs().amax(0) for layer in targets]).amax(0)
        factor = (activations.clamp_min(1e-5) ** alpha / weights.clamp_min(1e-5) ** (1 - alpha)).clamp(1e-4, 1e4)
        if fold_in(module, batch, fold, factor, before):
            applied.append(fold)
    return applied


@torch.no_grad()
def fold_in(module: nn.Module, batch: Any, fold: Fold, factor: torch.Tensor, before: torch.Tensor) -> bool:
    """Divide a fold's source by factor [channels] and multiply its targets, in place; undone, and False, where the outputs on `batch` are not `before`'s."""
    targets: list[Any] = [module.get_submodule(name) for name in fold.targets]
    origin: Any = module.get_submodule(fold.source)
    if len(factor) != len(origin.weight):
        return False
    kept = [(parameter, parameter.clone()) for layer in (origin, *targets) for parameter in layer.parameters()]
    origin.weight /= factor.view(-1, *[1] * (origin.weight.ndim - 1))
    if getattr(origin, "bias", None) is not None:
        origin.bias /= factor
    for layer in targets:
        layer.weight *= factor
    after = forward(module, batch)
    if torch.linalg.vector_norm(after - before) <= EXACT * torch.linalg.vector_norm(before):
        return True
    for parameter, value in kept:
        parameter.copy_(value)
    return False
