"""Kinds of feed-forward parts that the decoder's kernel knows, as data beside a layer's matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lissome.core.errors import BadInput
from lissome.kernels.decoder.arrays import Array, hold
from lissome.kernels.decoder.packed import Packed

Kind = Literal["gated", "gate-first", "product", "plain", "experts"]
Activation = Literal["silu", "relu", "relu2"]
Weighing = Literal["scores", "normalised", "ones"]
KINDS: tuple[Kind, ...] = ("gated", "gate-first", "product", "plain", "experts")
ACTIVATIONS: tuple[Activation, ...] = ("silu", "relu", "relu2")
WEIGHINGS: tuple[Weighing, ...] = ("scores", "normalised", "ones")
GATED = ("gate", "up", "down")
BY_NEURON: Mapping[str, tuple[str, ...]] = {"gate-first": ("up", "down"), "product": ("down",), "plain": ("down",)}
"""Matrices that are laid out by neuron [neurons, hidden], so that a neuron's weights can be left unread; `down` is transposed for that."""


@dataclass(frozen=True)
class Experts:
    """How rows find their experts. count, active: of all, and for each row.

    scores: "softmax" over all experts, or "sigmoid" of each. weights: of a chosen expert: its score, its share of the chosen ones' scores, or 1; times scale.
    bias: [count], added to the scores for choosing alone; offset: [count], added to the router's logits; None: zeros. shared: the layer's own gate, up and
    down are an expert that every row goes through.
    """

    count: int
    active: int
    scores: Literal["softmax", "sigmoid"] = "softmax"
    weights: Weighing = "normalised"
    scale: float = 1.0
    bias: Array | None = None
    offset: Array | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        hold(self, "bias", "offset")
        if not 1 <= self.active <= self.count:
            raise BadInput(f"{self.active} of {self.count} experts cannot be active", expected=f"1 to {self.count}")
        for name in ("bias", "offset"):
            given: Array | None = getattr(self, name)
            if given is not None and given.shape != (self.count,):
                raise BadInput(f"a {name} of shape {list(given.shape)} does not fit {self.count} experts", expected=f"[{self.count}]")


@dataclass(frozen=True)
class Ffn:
    """What a layer's feed-forward part is. Matrices go by name in `Layer.matrices`:

    gated       gate, up, down: down (act(gate x) * up x)
    gate-first  the same; neurons with |act(gate x)| <= threshold are skipped, in up and in down
    product     the same; neurons with |act(gate x) * up x| <= threshold are skipped in down
    plain       up, down: down act(up x); neurons with |act(up x)| <= threshold are skipped in down
    experts     router, experts.0.gate, experts.0.up, ...; and gate, up, down where one is shared
    """

    kind: Kind = "gated"
    activation: Activation = "silu"
    threshold: float = 0.0
    experts: Experts | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.activation not in ACTIVATIONS:
            raise BadInput(f'a "{self.kind}" feed-forward part with {self.activation} is not offered', expected=f"{', '.join(KINDS)}; {', '.join(ACTIVATIONS)}")
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise BadInput(f"a threshold of {self.threshold} is no size of an activation", expected="0 or more, and finite")
        if self.threshold and self.kind not in BY_NEURON:
            raise BadInput(f"a {self.kind} feed-forward part has no threshold", expected=f"one of {', '.join(BY_NEURON)}")
        if (self.kind == "experts") != (self.experts is not None):
            raise BadInput(f"a {self.kind} feed-forward part {'lacks' if self.experts is None else 'has no'} experts")

    def names(self) -> tuple[str, ...]:
        """The matrices it is made of."""
        if self.experts is None:
            return GATED[1:] if self.kind == "plain" else GATED
        own = tuple(f"experts.{i}.{name}" for i in range(self.experts.count) for name in GATED)
        return (*(GATED if self.experts.shared else ()), "router", *own)

    def neurons(self, matrices: Mapping[str, Packed]) -> int:
        """Neurons of the widest of its parts."""
        return max(matrices[name].rows for name in self.names() if name.rpartition(".")[2] in ("gate", "up"))

    def check(self, matrices: Mapping[str, Packed]) -> None:
        """Raise BadInput where a matrix is missing, or laid out for another kind."""
        for name in self.names():
            if name not in matrices:
                raise BadInput(f'a {self.kind} feed-forward part lacks its matrix "{name}"', expected=", ".join(self.names()[:6]))
            wanted = "neurons" if name in BY_NEURON.get(self.kind, ()) else "tiles"
            if matrices[name].layout != wanted:
                raise BadInput(f'"{name}" of a {self.kind} feed-forward part is laid out in {matrices[name].layout}', expected=f"{wanted}; pack it so")


GATED_SILU = Ffn()
