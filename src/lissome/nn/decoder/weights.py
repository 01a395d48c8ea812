"""Weights for the decoder kernel from a GGUF file, exactly as they stand there; names and rotations that other sources share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lissome.core.errors import BadModel
from lissome.kernels.decoder.arrays import Array, room
from lissome.kernels.decoder.native import Layer, Weights
from lissome.kernels.decoder.packed import ROWS, Bits, Codes, Packed, pack, packed_bytes
from lissome.nn.decoder.check import check_gguf, check_sizes
from lissome.nn.decoder.gguf import Gguf, slice_rows

GGUF_NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
LLAMA_NAMES = {
    **{name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
ARCHITECTURES = ("llama",)
TURNED, GROUP = ("q", "k"), 32
"""Matrices whose rows llama.cpp lays out in another order; columns that share a scale in every block of a GGUF file."""
SLICE = 1 << 18
"""Weights of a file that are packed at a time, so that no whole tensor is in memory twice."""


def from_gguf(file: Gguf, positions: int | None = None) -> Weights:
    """The decoder in a GGUF file; codes stay the codes they are. positions: turned ahead, where fewer than the model was made for will do.

    Raises BadModel for an architecture that is not offered, and for parts that do not fit one another.
    """
    plan = gguf_plan(file, positions)
    heads, kv_heads, dim = plan.heads, plan.kv_heads, plan.dim

    def layer(at: int) -> Layer:
        norm, ffn_norm = (floats_of(file, f"blk.{at}.{name}.weight") for name in ("attn_norm", "ffn_norm"))
        return Layer(norm, ffn_norm, {name: _packed(file, f"blk.{at}.{stored}.weight", dim if name in TURNED else 0) for name, stored in GGUF_NAMES.items()})

    embedding = _packed(file, "token_embd.weight")
    head = _packed(file, "output.weight") if "output.weight" in file.entries else embedding
    cosine, sine = rotations(dim, plan.positions, plan.base)
    norm = floats_of(file, "output_norm.weight")
    return Weights([layer(at) for at in range(plan.layers)], embedding, head, norm, cosine, sine, heads, kv_heads, dim, plan.epsilon, dim**-0.5)


def _packed(file: Gguf, stored: str, dim: int = 0) -> Packed:
    """A matrix of the file in the kernel's layout. dim: of the heads whose rows are turned, 0 where none are."""
    (rows, columns), bits = file.entries[stored].shape, bits_of(file, stored)
    data, begin = room(packed_bytes(rows, columns, bits, GROUP), np.uint8), 0
    for part in packed_slices(file, stored, dim):
        data[begin : begin + part.size] = part
        begin += part.size
    return Packed(data, rows, columns, bits, GROUP)


def bits_of(file: Gguf, stored: str) -> Bits:
    """Of a matrix's codes, or 32 for floats. Raises BadModel for a tensor that is no matrix."""
    entry = file.entries[stored]
    if len(entry.shape) != 2:
        raise BadModel(f'the tensor "{stored}" has the shape {list(entry.shape)}', where=str(file.path), expected="rows and columns")
    return 4 if entry.kind in ("Q4_0", "Q4_1") else 8 if entry.kind == "Q8_0" else 32


def packed_slices(file: Gguf, stored: str, dim: int = 0) -> Iterator[Array]:
    """Bytes of a packed matrix, some tiles of rows at a time; the file's pages are given back on the way. dim: as for `_packed`."""
    rows, columns = file.entries[stored].shape
    whole = math.lcm(dim or ROWS, ROWS)  # tiles and heads are not cut
    step = max(1, SLICE // columns // whole) * whole
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        part = slice_rows(file, stored, begin, end)
        yield pack(halves_first(part, (end - begin) // dim) if dim else part).data
        file.mapped.drop([file.entries[stored].span])


def floats_of(file: Gguf, stored: str) -> Array:
    """A tensor as float32, whatever it is stored in; its pages are given back."""
    found = file.tensor(stored)
    file.mapped.drop([file.entries[stored].span])
    return found.dense() if isinstance(found, Codes) else found


@dataclass(frozen=True)
class Plan:
    """Sizes of the decoder in a GGUF file. positions: turned ahead; base: of the rotations."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    dim: int
    positions: int
    base: float
    epsilon: float


def gguf_plan(file: Gguf, positions: int | None = None) -> Plan:
    """What a file's metadata says, held against its tensors. Raises BadModel for an architecture that is not offered, and for parts that do not fit."""
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise BadModel(f'its architecture is "{architecture!s:.50}"', where=str(file.path), expected=", ".join(ARCHITECTURES))
    number = numbers_of(file, f"{architecture}.")
    heads, hidden, layers = (number(key) for key in ("attention.head_count", "embedding_length", "block_count"))
    kv_heads = number("attention.head_count_kv", heads)
    dim = number("attention.key_length", max(1, hidden // heads))
    context = number("context_length")
    turned = min(context, positions or context)
    check_sizes(layers, heads, kv_heads, dim, turned, str(file.path))
    check_gguf(file, GGUF_NAMES, {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "dim": dim})
    base = _real(file, f"{architecture}.rope.freq_base", 10000.0)
    epsilon = _real(file, f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    return Plan(layers, hidden, heads, kv_heads, dim, turned, base, epsilon)


def rotations(dim: int, positions: int, base: float, begin: int = 0) -> tuple[Array, Array]:
    """Cosine and sine [positions - begin, dim / 2] of rotary embeddings (Su et al. 2021), float32, from the position `begin` on."""
    rates = (1.0 / base ** (np.arange(0, dim, 2) / dim)).astype(np.float32)
    angles = np.arange(begin, positions, dtype=np.float32)[:, None] * rates
    return np.cos(angles), np.sin(angles)


def halves_first(weights: Array | Codes, heads: int) -> Array | Codes:
    """Rows of queries or keys in the order in which halves are rotated, from GGUF's, in which neighbours are."""
    if isinstance(weights, Codes):
        return dataclasses.replace(weights, **{name: _turned(getattr(weights, name), heads) for name in ("codes", "scale", "offset")})
    return _turned(weights, heads)


def _turned(rows: Array, heads: int) -> Array:
    return np.ascontiguousarray(rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2)).reshape(rows.shape)


def _real(file: Gguf, key: str, default: float) -> float:
    value = file.metadata.get(key, default)
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BadModel(f'its metadata has {value!r:.50} for "{key}"', where=str(file.path), expected="a number above 0")
    return float(value)


def numbers_of(file: Gguf, prefix: str) -> Callable[..., int]:
    """(key, default) -> a whole number above 0 of the metadata under the prefix. Raises BadModel for anything else."""

    def number(key: str, default: int | None = None) -> int:
        value = file.metadata.get(prefix + key, default)
        if not isinstance(value, int) or value < 1:
            raise BadModel(f'its metadata has {value} for "{prefix}{key}"', where=str(file.path), expected="a whole number above 0")
        return value

    return number
