"""The C++ kernels behind numpy arrays."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lissome.core.errors import BadInput
from lissome.kernels.decoder.arrays import Array, address, hold, room, untouched_zeros
from lissome.kernels.decoder.ffn import ACTIVATIONS, GATED, GATED_SILU, KINDS, WEIGHINGS, Ffn
from lissome.kernels.decoder.packed import ROUNDINGS, ROWS, Packed, Rounding
from lissome.kernels.library import library


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
        *((name, ctypes.c_int32) for name in ("bits", "group", "inputs")),
        ("data", ctypes.c_void_p),
    ]


Inputs = Literal["mixed", 8, 16, 32]
"""Bits to which the inputs of products are rounded; mixed: what each matrix says, or `RULE`."""
INPUTS: Inputs = "mixed"
INPUTS_OFFERED: tuple[Inputs, ...] = ("mixed", *ROUNDINGS)
RULE: Mapping[str, Rounding] = {"v": 16, "head": 16}
"""By a matrix's name, where nothing was measured; 8 for all others. Values are few and no softmax dampens their errors, and nothing follows the head."""
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class _Experts(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("count", "active")),
        *((name, ctypes.c_int32) for name in ("sigmoid", "weights")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("bias", "offset")),
        ("router", _Matrix),
        *((name, ctypes.POINTER(_Matrix)) for name in GATED),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("attention_norm", "ffn_norm")),
        *((name, _Matrix) for name in MATRICES),
        *((name, ctypes.c_int32) for name in ("ffn", "activation")),
        ("threshold", ctypes.c_float),
        ("experts", ctypes.POINTER(_Experts)),
    ]


class _Decoder(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "heads", "kv_heads", "dim", "ffn", "vocabulary", "slots", "capacity")),
        ("epsilon", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("half", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("layer", ctypes.POINTER(_Layer)),
        ("embedding", _Matrix),
        ("head", _Matrix),
        *((name, ctypes.c_void_p) for name in ("norm", "cosine", "sine", "keys", "values")),
    ]


class Pool:
    """A team of threads that stays between calls."""

    def __init__(self, threads: int) -> None:
        handle = library().loaded()
        handle.lissome_pool_new.restype = ctypes.c_void_p
        self._free = handle.lissome_pool_free
        self.handle = ctypes.c_void_p(handle.lissome_pool_new(ctypes.c_int(threads)))
        self.threads = threads
        if not self.handle:
            raise BadInput(f"a team of {threads:,} threads cannot be started here", do="ask for as many as there are cores")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._free(self.handle)


@dataclass(frozen=True)
class Layer:
    """One block. attention_norm, ffn_norm: [hidden] float32; matrices: [outputs, inputs] each: q, k, v, o, and what `ffn` names."""

    attention_norm: Array
    ffn_norm: Array
    matrices: Mapping[str, Packed]
    ffn: Ffn = GATED_SILU

    def __post_init__(self) -> None:
        hold(self, "attention_norm", "ffn_norm")
        for name in ("q", "k", "v", "o"):
            if name in self.matrices:
                in_tiles(self.matrices[name], name)
        self.ffn.check(self.matrices)


@dataclass(frozen=True)
class Weights:
    """A whole decoder. norm: [hidden]; cosine, sine: [positions, dim / 2], the rotation of each position; scale: of the attention scores."""

    layers: Sequence[Layer]
    embedding: Packed
    head: Packed
    norm: Array
    cosine: Array
    sine: Array
    heads: int
    kv_heads: int
    dim: int
    epsilon: float
    scale: float

    def __post_init__(self) -> None:
        hold(self, "norm", "cosine", "sine")
        in_tiles(self.embedding, "embedding")
        in_tiles(self.head, "head")


def in_tiles(matrix: Packed, name: str) -> None:
    """Raise BadInput for weights that are laid out by neuron: the kernel reads such in feed-forward parts alone."""
    if matrix.layout != "tiles":
        raise BadInput(f'"{name}" is laid out by neuron, which only feed-forward parts are read in', expected="what `pack` gives")


class Decoder:
    """The kernel with its weights, and room for the keys and values of `slots` sequences of up to `capacity` tokens.

    half: keep keys and values in bfloat16 (uint16 to numpy, which has no such type) rather than float32. kept: those that another decoder has made room for.
    inputs: bits to which the inputs of products are rounded where several rows share the weights and the processor multiplies integers faster; 32: never;
    mixed: as each matrix says.
    """

    def __init__(
        self,
        weights: Weights,
        slots: int,
        capacity: int,
        pool: Pool,
        half: bool = True,
        inputs: Inputs = INPUTS,
        kept: tuple[Array, Array] | None = None,
    ) -> None:
        if capacity > weights.cosine.shape[0]:
            raise BadInput(f"room for {capacity} tokens, but positions for {weights.cosine.shape[0]}", do="ask for less")
        check_inputs(inputs)
        self.weights, self.slots, self.capacity, self.pool = weights, slots, capacity, pool
        shape = (len(weights.layers), slots, weights.kv_heads, capacity, weights.dim)
        self.half, self.inputs = half, inputs
        self.keys, self.values = kept or (untouched_zeros(shape, np.uint16 if half else np.float32) for _ in range(2))
        self._held: list[Any] = []  # what the structure points to
        self._given = self._structure(half, inputs)

    def part(self, first: int, last: int, head: Packed | None = None, exact: bool = False) -> Decoder:
        """Layers [first, last) over the same weights, keys and values, 0 <= first < last <= layers.

        head: one of its own, whose rows its logits are of. exact: never rounds inputs, so that several rows say what each says by itself.
        """
        weights = dataclasses.replace(self.weights, layers=self.weights.layers[first:last], head=head or self.weights.head)
        kept = self.keys[first:last], self.values[first:last]
        return Decoder(weights, self.slots, self.capacity, self.pool, self.half, 32 if exact else self.inputs, kept)

    def step(self, tokens: Any, slots: Any, positions: Any, wanted: Any, begin: Any = None, end: Any = None) -> Array:
        """Logits [wanted, vocabulary] of the rows `wanted`, after all rows were read.

        tokens, slots, positions: [rows], a token each, the sequence it is of and its place there; rows of a sequence are neighbours, in rising order.
        begin: states [rows, hidden] float32 that the rows have before the first layer, in place of embeddings; end: room for those after the last.
        """
        rows = [np.ascontiguousarray(one, np.int32) for one in (tokens, slots, positions, wanted)]
        states = [None if one is None else _states(np.asarray(one), len(rows[0]), self.weights.embedding.columns) for one in (begin, end)]
        logits = room((len(rows[3]), self.weights.head.rows))
        pointers = [None if one is None else ctypes.c_void_p(address(one)) for one in (*rows, logits, *states)]
        call = library().loaded().lissome_decoder_step
        lengths = ctypes.c_int64(len(rows[0])), ctypes.c_int64(len(rows[3]))
        code = call(ctypes.byref(self._given), self.pool.handle, lengths[0], *pointers[:3], lengths[1], *pointers[3:])
        _check(code, "lissome_decoder_step")
        return logits

    def _structure(self, half: bool, inputs: Inputs) -> _Decoder:
        w = self.weights
        layers = (_Layer * max(1, len(w.layers)))()
        for made, layer in zip(layers, w.layers, strict=False):
            made.attention_norm, made.ffn_norm = self._floats(layer.attention_norm), self._floats(layer.ffn_norm)
            for name in MATRICES:
                if name in layer.matrices:
                    setattr(made, name, _matrix(layer.matrices[name], name))
            self._put_ffn(made, layer)
        self._held.append(layers)
        hidden, ffn = w.embedding.columns, max((layer.ffn.neurons(layer.matrices) for layer in w.layers), default=0)
        sizes = len(w.layers), hidden, w.heads, w.kv_heads, w.dim, ffn, w.embedding.rows, self.slots, self.capacity
        given = _Decoder(*sizes, w.epsilon, w.scale, int(half), _bits(inputs), layers)
        given.embedding, given.head = _matrix(w.embedding), _matrix(w.head, "head")
        given.norm, given.cosine, given.sine = self._floats(w.norm), self._floats(w.cosine), self._floats(w.sine)
        given.keys, given.values = address(self.keys), address(self.values)
        return given

    def _put_ffn(self, made: _Layer, layer: Layer) -> None:
        ffn, experts = layer.ffn, layer.ffn.experts
        made.ffn, made.activation, made.threshold = KINDS.index(ffn.kind), ACTIVATIONS.index(ffn.activation), ffn.threshold
        if experts is None:
            return
        given = _Experts(experts.count, experts.active, experts.scores == "sigmoid", WEIGHINGS.index(experts.weights), experts.scale)
        for name in ("bias", "offset"):
            floats: Array | None = getattr(experts, name)
            setattr(given, name, None if floats is None else self._floats(floats))
        given.router = _matrix(layer.matrices["router"])
        for name in GATED:
            every = (_Matrix * experts.count)(*(_matrix(layer.matrices[f"experts.{i}.{name}"], name) for i in range(experts.count)))
            self._held.append(every)
            setattr(given, name, every)
        self._held.append(given)
        made.experts = ctypes.pointer(given)

    def _floats(self, given: Array) -> int:
        held = np.ascontiguousarray(given, np.float32)
        self._held.append(held)
        return address(held)


def multiply(matrix: Packed, x: Any, pool: Pool, inputs: Inputs = 32) -> Array:
    """x [n, columns] times the transposed matrix: [n, rows], float32. inputs: as for `Decoder`."""
    in_tiles(matrix, "matrix")
    check_inputs(inputs)
    x = np.ascontiguousarray(x, np.float32)
    if x.ndim != 2 or x.shape[1] != matrix.columns:
        raise BadInput(f"inputs {list(x.shape)} do not fit {matrix.rows} x {matrix.columns} weights", expected=f"[n, {matrix.columns}]")
    out = room((len(x), -(-matrix.rows // ROWS) * ROWS))
    given = _matrix(matrix)
    pointers = ctypes.c_void_p(address(x)), ctypes.c_void_p(address(out))
    call = library().loaded().lissome_matrix_multiply
    _check(call(ctypes.byref(given), pool.handle, _bits(inputs), ctypes.c_int64(len(x)), *pointers), "lissome_matrix_multiply")
    return out[:, : matrix.rows]


def check_inputs(inputs: Inputs) -> None:
    """Raise BadInput for a way of rounding that is not offered."""
    if inputs not in INPUTS_OFFERED:
        raise BadInput(f"inputs of {inputs} bits are not offered", expected=", ".join(map(str, INPUTS_OFFERED)))


def _bits(inputs: Inputs) -> int:
    return 0 if inputs == "mixed" else inputs


def _matrix(packed: Packed, name: str = "") -> _Matrix:
    return _Matrix(packed.rows, packed.columns, packed.bits, packed.group, packed.inputs or RULE.get(name, 8), address(packed.data))


def _states(states: Array, rows: int, hidden: int) -> Array:
    if states.shape != (rows, hidden) or states.dtype != np.float32 or not states.flags.c_contiguous:
        raise BadInput(f"states {list(states.shape)} of {states.dtype} are not those of {rows} rows", expected=f"[{rows}, {hidden}] float32, contiguous")
    return states


def _check(code: int, name: str) -> None:
    if code == 2:
        raise MemoryError(f"{name}: no memory for its scratch")
    if code:
        raise BadInput(f"{name} refused its arguments (code {code})", expected="tokens of the vocabulary, slots and positions within what was made room for")
