"""To how many bits the inputs of a decoder's products may be rounded, matrix by matrix, as measured on text.

What rounding costs is the divergence (Kullback and Leibler 1951) of the next token's distribution from the one without rounding, in nats a token: to first
order what it adds to the loss, and far steadier on little text than the loss itself. What several kinds of matrices cost together is the sum, as measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lissome.core.progress import Progress, Silent
from lissome.core.statistics import log_softmax
from lissome.kernels.decoder.native import Decoder, Pool, Weights
from lissome.kernels.decoder.packed import Packed, Rounding
from lissome.kernels.library import library

TOGETHER: Mapping[str, tuple[str, ...]] = {
    "scores": ("q", "k"),
    "neurons": ("gate", "up"),
    **{name: (name,) for name in ("v", "o", "down", "head")},
}
"""Kinds of matrices, each of which is rounded alike in all layers."""
MOST = 0.001
"""Nats a token that rounding may cost: 0.1 % of the perplexity."""
ISA = "avx512-vnni"
"""Where rows are multiplied as integers."""


def measured_inputs(weights: Weights, windows: Any, most: float = MOST, threads: int = 1, progress: Progress | None = None) -> Weights:
    """The weights, of which each says to how many bits its inputs are rounded: 8, and 16 where all with 8 cost more than `most`.

    windows: token ids [windows, length], of numpy or torch. What costs most for each of its weights gets 16 bits first. Where the processor never rounds,
    nothing can be measured, and the weights come back as they are: the decoder's rule holds.
    """
    if library().isa != ISA:
        return weights
    costs = rounding_costs(weights, windows, threads, progress)
    sizes = dict.fromkeys(TOGETHER, 0)
    for name, one in _named(weights):
        sizes[name] += one.rows * one.columns
    bits: dict[str, Rounding] = dict.fromkeys(TOGETHER, 8)
    for name in sorted(costs, key=lambda name: costs[name] / max(1, sizes[name]), reverse=True):
        if sum(costs[one] for one in costs if bits[one] == 8) <= most:
            break
        bits[name] = 16
    return with_inputs(weights, bits)


def rounding_costs(weights: Weights, windows: Any, threads: int = 1, progress: Progress | None = None) -> dict[str, float]:
    """What 8 bits cost for each name in TOGETHER, all other inputs being of 16 bits: nats a token."""
    pool, progress = Pool(threads), progress or Silent()
    windows = np.asarray(windows)
    length = windows.shape[1]
    plain = Decoder(weights, 1, length, pool, inputs=16)
    tried = {name: Decoder(with_inputs(weights, {one: 8 if one == name else 16 for one in TOGETHER}), 1, length, pool) for name in TOGETHER}
    place, found = np.arange(length), dict.fromkeys(TOGETHER, 0.0)
    for at, window in enumerate(windows):
        progress.stage(f"rounding of inputs: window {at + 1} of {len(windows)}")
        given = window, np.zeros_like(place), place, place
        expected = log_softmax(plain.step(*given))
        for name, decoder in tried.items():
            found[name] += float((np.exp(expected) * (expected - log_softmax(decoder.step(*given)))).sum(dtype=np.float64))
    return {name: max(0.0, cost / windows.size) for name, cost in found.items()}


def with_inputs(weights: Weights, bits: Mapping[str, Rounding]) -> Weights:
    """The weights, with inputs rounded to so many bits, by name in TOGETHER."""

    def said(name: str, one: Packed) -> Packed:
        return dataclasses.replace(one, inputs=bits[group]) if (group := _group(name)) in bits else one

    layers = [dataclasses.replace(layer, matrices={name: said(name, one) for name, one in layer.matrices.items()}) for layer in weights.layers]
    head = said("head", weights.head)
    return dataclasses.replace(weights, layers=layers, head=head, embedding=head if weights.embedding is weights.head else weights.embedding)


def _group(name: str) -> str:
    """Of "q", or "experts.3.gate"; "" for what is never rounded."""
    own = name.rpartition(".")[2]
    return next((group for group, names in TOGETHER.items() if own in names), "")


def _named(weights: Weights) -> Iterator[tuple[str, Packed]]:
    for layer in weights.layers:
        for name, one in layer.matrices.items():
            if group := _group(name):
                yield group, one
    yield "head", weights.head
