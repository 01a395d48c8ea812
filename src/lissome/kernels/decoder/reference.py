"""The decoder in plain torch, float32: what the kernel is held to, and what runs where it was not built. Arrays go in and come out, as with the kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lissome.kernels.decoder import packed
from lissome.kernels.decoder.arrays import Array
from lissome.kernels.decoder.ffn import Experts
from lissome.kernels.decoder.native import Layer, Weights
from lissome.kernels.decoder.packed import Packed


class Reference:
    """As `native.Decoder`, one row after the other."""

    def __init__(self, weights: Weights, slots: int, capacity: int, half: bool = True, kept: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        self.weights, self.slots, self.capacity, self.half = weights, slots, capacity, half
        shape = (len(weights.layers), slots, weights.kv_heads, capacity, weights.dim)
        self.keys, self.values = kept or (torch.zeros(shape, dtype=torch.bfloat16 if half else torch.float32) for _ in range(2))

    def part(self, first: int, last: int, head: Packed | None = None, exact: bool = True) -> Reference:
        """Layers [first, last) over the same weights, keys and values; always exact."""
        weights = dataclasses.replace(self.weights, layers=self.weights.layers[first:last], head=head or self.weights.head)
        return Reference(weights, self.slots, self.capacity, self.half, (self.keys[first:last], self.values[first:last]))

    def step(self, tokens: Any, slots: Any, positions: Any, wanted: Any, begin: Any = None, end: Any = None) -> Array:
        """Logits [wanted, vocabulary] of the rows `wanted`, after all rows were read."""
        tokens, slots, positions, wanted = (np.asarray(one).astype(np.int64) for one in (tokens, slots, positions, wanted))
        first = dense(self.weights.embedding)[torch.from_numpy(tokens)] if begin is None else torch.tensor(np.asarray(begin))
        states = [self._row(row, int(slot), int(position)) for row, slot, position in zip(first, slots, positions, strict=True)]
        for at, state in enumerate(states if end is not None else ()):
            end[at] = state
        if not len(wanted):
            return np.empty((0, self.weights.head.rows), np.float32)
        last = torch.stack([states[row] for row in wanted])
        logits = functional.rms_norm(last, last.shape[1:], _floats(self.weights.norm), self.weights.epsilon) @ dense(self.weights.head).T
        return logits.numpy()

    def _row(self, state: torch.Tensor, slot: int, position: int) -> torch.Tensor:
        w = self.weights
        for at, layer in enumerate(w.layers):
            m = layer.matrices
            x = functional.rms_norm(state, state.shape, _floats(layer.attention_norm), w.epsilon)
            q, k, v = ((dense(matrix) @ x).view(-1, w.dim) for matrix in (m["q"], m["k"], m["v"]))
            self.keys[at, slot, :, position] = self._rotated(k, position).to(self.keys.dtype)
            self.values[at, slot, :, position] = v.to(self.values.dtype)
            keys, values = (kept[at, slot, :, : position + 1].float() for kept in (self.keys, self.values))
            grouped = self._rotated(q, position).view(w.kv_heads, -1, w.dim)
            seen = ((grouped @ keys.transpose(1, 2)) * w.scale).softmax(-1) @ values
            state = state + dense(m["o"]) @ seen.flatten()
            x = functional.rms_norm(state, state.shape, _floats(layer.ffn_norm), w.epsilon)
            state = state + feed_forward(layer, x)
        return state

    def _rotated(self, heads: torch.Tensor, position: int) -> torch.Tensor:
        cosine, sine = _floats(self.weights.cosine[position]), _floats(self.weights.sine[position])
        a, b = heads.chunk(2, -1)
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


Function = Callable[[torch.Tensor], torch.Tensor]
ACTIVATED: dict[str, Function] = {"silu": functional.silu, "relu": functional.relu, "relu2": lambda x: functional.relu(x).square()}


def feed_forward(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """What a layer's feed-forward part says of one row x [hidden]: every neuron is computed, and those that are to be skipped are set to 0."""
    m, ffn, act = layer.matrices, layer.ffn, ACTIVATED[layer.ffn.activation]
    if ffn.experts is not None:
        index, weight = chosen(ffn.experts, dense(m["router"]) @ x)
        own = torch.stack([w * _gated(layer, x, f"experts.{i}.") for i, w in zip(index.tolist(), weight, strict=True)]).sum(0)
        return own + _gated(layer, x) if ffn.experts.shared else own
    if ffn.kind == "gated":
        return _gated(layer, x)
    up = dense(m["up"]) @ x
    asked = act(up) if ffn.kind == "plain" else act(dense(m["gate"]) @ x) * (up if ffn.kind == "product" else 1)
    spoken = torch.where(asked.abs() <= ffn.threshold, 0, asked * up if ffn.kind == "gate-first" else asked)
    return spoken @ dense(m["down"])


def _gated(layer: Layer, x: torch.Tensor, prefix: str = "") -> torch.Tensor:
    gate, up, down = (dense(layer.matrices[prefix + name]) for name in ("gate", "up", "down"))
    return down @ (ACTIVATED[layer.ffn.activation](gate @ x) * (up @ x))


def chosen(experts: Experts, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of a row and their weights [active], best first, by the router's logits [count]."""
    logits = logits if experts.offset is None else logits + _floats(experts.offset)
    scores = logits.softmax(-1) if experts.scores == "softmax" else logits.sigmoid()
    asked = scores if experts.bias is None else scores + _floats(experts.bias)
    index = asked.sort(descending=True, stable=True).indices[: experts.active]
    weight = torch.ones(experts.active) if experts.weights == "ones" else scores[index]
    if experts.weights == "normalised":
        weight = weight / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
    return index, experts.scale * weight


def dense(matrix: Packed) -> torch.Tensor:
    """The weights of a packed matrix [rows, columns], float32."""
    return _floats(packed.dense(matrix))


def _floats(given: Array) -> torch.Tensor:
    """As a tensor; arrays of a mapped file are copied, since torch warns of those that cannot be written."""
    floats = np.asarray(given, np.float32)
    return torch.from_numpy(floats) if floats.flags.writeable else torch.tensor(floats)
