"""Feed-forward networks that can be split: found by their layers' shapes, and believed only when a formula gives what the module itself gives."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import nn

from lissome.core.errors import BadModel
from lissome.nn.moe.config import Activation
from lissome.nn.moe.experts import ACTIVATIONS

TOLERANCE = 1e-4
"""Largest difference from the module's own output, as a share of the largest value in it."""


@dataclass(frozen=True)
class Dense:
    """down(act(gate x) * up x), or down(act(up x)) without a gate."""

    up: nn.Linear
    gate: nn.Linear | None
    down: nn.Linear
    activation: Activation

    @property
    def neurons(self) -> int:
        """How many."""
        return self.down.in_features

    @property
    def width(self) -> int:
        """Of what goes in and comes out."""
        return self.down.out_features

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """The neurons' values [..., neurons]."""
        act = ACTIVATIONS[self.activation]
        return act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)


def dense_networks(module: nn.Module) -> dict[str, Dense]:
    """The feed-forward networks in a module that can be split, by name. Raises BadModel, naming what came closest and why, where there is none."""
    found: dict[str, Dense] = {}
    refused: list[str] = []
    for name, one in module.named_modules():
        layers = _linears(one)
        if layers is None or not name:
            continue
        dense = _recognised(one, layers)
        if dense is None:
            refused.append(f"{name} ({type(one).__name__})")
        else:
            found[name] = dense
    if not found:
        near = f" Modules of two or three linear layers compute something else: {', '.join(refused[:3])}." if refused else ""
        raise BadModel(
            f"{type(module).__name__} has no feed-forward network that can be split.{near}",
            expected="modules that hold two or three linear layers and compute down(act(up x)) or down(act(gate x) * up x), as Llama's and Phi's do",
            do="models that spread them over several modules, such as BERT, are not offered",
        )
    return found


def _linears(module: nn.Module) -> list[nn.Linear] | None:
    """The two or three linear layers of a module that holds no other weights; None for other modules."""
    holding = [child for child in module.children() if next(child.parameters(), None) is not None]
    linears = [child for child in holding if isinstance(child, nn.Linear)]
    return linears if len(linears) == len(holding) in (2, 3) and not list(module.parameters(recurse=False)) else None


@torch.no_grad()
def _recognised(module: nn.Module, layers: list[nn.Linear]) -> Dense | None:
    """What the module computes, if it is one of the formulas."""
    for option in itertools.permutations(layers):
        expected = _output(module, _probe(option[0]), option[-1].out_features) if _fit(*option) else None
        if expected is None:
            continue
        for activation in ACTIVATIONS:
            dense = Dense(option[0], option[1] if len(option) == 3 else None, option[-1], activation)
            off = (dense.down(dense.values(_probe(option[0]))) - expected).abs().max()
            if off <= TOLERANCE * expected.abs().max():
                return dense
    return None


def _probe(layer: nn.Linear) -> torch.Tensor:
    """Inputs for the layer, always the same."""
    return torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(0)).to(layer.weight.device, layer.weight.dtype)


def _output(module: nn.Module, x: torch.Tensor, width: int) -> torch.Tensor | None:
    """What the module gives for x, if that is a tensor [n, width]; None too for a module that takes something else."""
    training = module.training
    try:
        found = module.eval()(x)
    except Exception:  # noqa: BLE001  a module that takes something else raises whatever its code meets first
        return None
    finally:
        module.train(training)
    return found if isinstance(found, torch.Tensor) and found.shape == (len(x), width) else None


def _fit(*layers: nn.Linear) -> bool:
    """Whether the layers can be (up, gate, down) or (up, down)."""
    first, last = layers[:-1], layers[-1]
    return all(one.in_features == last.out_features and one.out_features == last.in_features for one in first)
