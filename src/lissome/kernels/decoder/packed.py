"""Weight matrices as the kernel reads them, and back: tiles of 16 rows, codes of 4 or 8 bits with a scale and an offset for each group of columns.

A weight is scale * code + offset, with codes 0..15 or -128..127 and scale and offset in half precision; `native/matrix.h` has the layout in bytes. Matrices
of feed-forward parts that skip neurons are laid out row by row instead (`native/decoder.h`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lissome.core.errors import BadInput
from lissome.kernels.decoder.arrays import Array, hold, room

ROWS = 16
GROUPS = (32, 64, 128)
BLOCK = 64
Bits = Literal[4, 8, 32]
Layout = Literal["tiles", "neurons"]
Rounding = Literal[8, 16, 32]
ROUNDINGS: tuple[Rounding, ...] = (8, 16, 32)
"""Bits that what a matrix multiplies may be rounded to where several rows share it; 32: not at all."""


@dataclass(frozen=True)
class Codes:
    """A matrix in codes. codes: [rows, columns] uint8 (4 bits: 0..15) or int8; scale, offset: [rows, columns / group] float16."""

    codes: Array
    scale: Array
    offset: Array

    def __post_init__(self) -> None:
        hold(self, "codes", "scale", "offset")

    @property
    def group(self) -> int:
        """How many columns share a scale."""
        return int(self.codes.shape[1] // self.scale.shape[1])

    @property
    def bits(self) -> Bits:
        """Of a code."""
        return 4 if self.codes.dtype == np.uint8 else 8

    def dense(self) -> Array:
        """The weights they stand for [rows, columns], float32."""
        wide = self.codes.astype(np.float32).reshape(*self.scale.shape, self.group)
        wide *= self.scale.astype(np.float32)[..., None]
        wide += self.offset.astype(np.float32)[..., None]
        return wide.reshape(self.codes.shape)


@dataclass(frozen=True)
class Packed:
    """A matrix of `rows` x `columns` in the kernel's layout. data: bytes, uint8 [n], 64-byte aligned where they were made here.

    inputs: bits that what it multiplies may be rounded to, as measured for it; None: what the decoder's rule says of its place.
    """

    data: Array
    rows: int
    columns: int
    bits: Bits
    group: int
    layout: Layout = "tiles"
    inputs: Rounding | None = None

    def __post_init__(self) -> None:
        hold(self, "data")
        if self.inputs is not None and self.inputs not in ROUNDINGS:
            raise BadInput(f"inputs of {self.inputs} bits are not offered", expected="8, 16 or 32")
        expected = packed_bytes(self.rows, self.columns, self.bits, self.group, self.layout)
        if self.data.dtype != np.uint8 or self.data.size != expected:
            raise BadInput(f"{self.data.size:,} bytes cannot be {self.rows} x {self.columns} weights of {self.bits} bits", expected=f"{expected:,} bytes")


def packed_bytes(rows: int, columns: int, bits: int, group: int, layout: Layout = "tiles") -> int:
    """Bytes of a packed matrix. Raises BadInput for sizes that the kernel does not take."""
    if bits not in (4, 8, 32) or group not in GROUPS or (bits == 32 and group != GROUPS[0]):
        raise BadInput(f"weights of {bits} bits in groups of {group} are not offered", expected="4 or 8 bits in groups of 32, 64 or 128, or floats")
    if rows < 1 or columns < 1 or columns % group:
        raise BadInput(f"{rows} x {columns} weights cannot be packed in groups of {group}", expected=f"columns a multiple of {group}")
    if layout == "neurons":
        return rows * (columns * 4 if bits == 32 else columns // group * 4 + -(-columns // BLOCK) * bits * 8)
    tiles, each = -(-rows // ROWS), group * 64 if bits == 32 else 64 + group * 2 * bits
    return tiles * (columns // group) * each


def pack(weights: Any) -> Packed:
    """Floats [rows, columns], or `Codes`, in the kernel's layout; nothing is rounded."""
    if isinstance(weights, Codes):
        return _pack_codes(weights)
    floats = np.asarray(weights, np.float32)
    rows, columns = floats.shape
    data = room(packed_bytes(rows, columns, 32, GROUPS[0]), np.uint8)
    data.view(np.float32).reshape(-1, columns, ROWS)[...] = _tiled(floats).transpose(0, 2, 1)
    return Packed(data, rows, columns, 32, GROUPS[0])


def _pack_codes(weights: Codes) -> Packed:
    rows, columns = weights.codes.shape
    bits, group = weights.bits, weights.group
    data = room(packed_bytes(rows, columns, bits, group), np.uint8)
    if bits == 4 and int(weights.codes.max()) > 15:
        raise BadInput(f"a code of {int(weights.codes.max())} does not fit into 4 bits", expected="0 to 15")
    tiles = data.reshape(-(-rows // ROWS), columns // group, -1)
    heads = np.stack([_tiled(np.asarray(one, np.float16)) for one in (weights.scale, weights.offset)], 1)  # [tiles, 2, 16, groups]
    tiles[:, :, :64].view(np.float16)[...] = heads.transpose(0, 3, 1, 2).reshape(*tiles.shape[:2], 2 * ROWS)
    codes = _tiled(weights.codes)
    raw = codes[..., 0::2] | codes[..., 1::2] << 4 if bits == 4 else codes.view(np.uint8)  # code c of a word is in its bits c * bits: bytes in their order
    words = np.ascontiguousarray(raw).view("<u4").reshape(len(tiles), ROWS, columns // group, -1)
    tiles[:, :, 64:].view("<u4")[...] = words.transpose(0, 2, 3, 1).reshape(*tiles.shape[:2], -1)
    return Packed(data, rows, columns, bits, group)


def pack_by_neuron(weights: Any) -> Packed:
    """As `pack`, one row after the other, so that a row can be left unread."""
    if not isinstance(weights, Codes):
        floats = np.asarray(weights, np.float32)
        rows, columns = floats.shape
        data = room(packed_bytes(rows, columns, 32, GROUPS[0], "neurons"), np.uint8)
        data.view(np.float32).reshape(rows, columns)[...] = floats
        return Packed(data, rows, columns, 32, GROUPS[0], "neurons")
    rows, columns = weights.codes.shape
    bits, group = weights.bits, weights.group
    data = room(packed_bytes(rows, columns, bits, group, "neurons"), np.uint8)
    kind = np.dtype("<u2" if bits == 4 else "<u4")
    codes = np.pad(weights.codes.view(np.uint8), ((0, 0), (0, -columns % BLOCK))).reshape(rows, -1, 4, BLOCK // 4)
    words = sum((codes[:, :, i].astype(kind) << kind.type(i * bits) for i in range(4)), np.zeros((), kind))  # [rows, blocks, 16]
    parts = [np.ascontiguousarray(one).view(np.uint8).reshape(rows, -1) for one in (weights.scale.astype("<f2"), weights.offset.astype("<f2"), words)]
    np.concatenate(parts, 1, out=data.reshape(rows, -1))
    return Packed(data, rows, columns, bits, group, "neurons")


def _unpack_by_neuron(packed: Packed) -> Array | Codes:
    rows, columns, bits, heads = packed.rows, packed.columns, packed.bits, packed.columns // packed.group * 2
    if bits == 32:
        return packed.data.view(np.float32).reshape(rows, columns)
    whole = packed.data.reshape(rows, -1)
    scale, offset = (np.ascontiguousarray(whole[:, heads * i : heads * (i + 1)]).view(np.float16) for i in range(2))
    kind = np.dtype("<u2" if bits == 4 else "<u4")
    words = np.ascontiguousarray(whole[:, 2 * heads :]).view(kind).reshape(rows, -1, 1, BLOCK // 4)
    codes = words >> (np.arange(4, dtype=kind) * kind.type(bits))[:, None] & kind.type((1 << bits) - 1)
    narrow = codes.astype(np.uint8).reshape(rows, -1)[:, :columns]
    return Codes(narrow if bits == 4 else narrow.view(np.int8), scale, offset)


def unpack(packed: Packed) -> Array | Codes:
    """What was packed: float32 [rows, columns], or `Codes`."""
    if packed.layout == "neurons":
        return _unpack_by_neuron(packed)
    tiles, group, bits = -(-packed.rows // ROWS), packed.group, packed.bits
    if bits == 32:
        return packed.data.view(np.float32).reshape(tiles, packed.columns, ROWS).transpose(0, 2, 1).reshape(-1, packed.columns)[: packed.rows]
    whole = packed.data.reshape(tiles, packed.columns // group, -1)
    heads = np.ascontiguousarray(whole[:, :, :64]).view(np.float16).reshape(tiles, -1, 2, ROWS)
    scale, offset = heads.transpose(2, 0, 3, 1).reshape(2, tiles * ROWS, -1)[:, : packed.rows]
    words = np.ascontiguousarray(whole[:, :, 64:]).view("<u4").reshape(tiles, packed.columns // group, -1, ROWS)
    raw = np.ascontiguousarray(words.transpose(0, 3, 1, 2)).reshape(tiles * ROWS, -1).view(np.uint8)[: packed.rows]
    codes = np.stack([raw & 15, raw >> 4], -1).reshape(packed.rows, -1) if bits == 4 else raw.view(np.int8)
    return Codes(codes, scale, offset)


def dense(packed: Packed) -> Array:
    """The weights of a packed matrix [rows, columns], float32."""
    found = unpack(packed)
    return found.dense() if isinstance(found, Codes) else found


def chosen_rows(packed: Packed, rows: Any) -> Packed:
    """The rows [n] of a matrix in tiles as a matrix of their own; nothing is rounded, and only the tiles that they lie in are unpacked."""
    rows = np.asarray(rows)
    tiles, place = np.unique(rows // ROWS, return_inverse=True)
    data = packed.data.reshape(-(-packed.rows // ROWS), -1)[tiles].reshape(-1)
    found = unpack(dataclasses.replace(packed, data=data, rows=len(tiles) * ROWS))
    at = place.reshape(-1) * ROWS + rows % ROWS
    if not isinstance(found, Codes):
        return pack(found[at])
    made = pack(Codes(found.codes[at], found.scale[at], found.offset[at]))
    return dataclasses.replace(made, inputs=packed.inputs)


def _tiled(weights: Array) -> Array:
    """[rows, columns] as [tiles, 16, columns], rows of zeros at the end."""
    missing = -len(weights) % ROWS
    if missing:
        weights = np.concatenate([weights, np.zeros((missing, weights.shape[1]), weights.dtype)])
    return weights.reshape(-1, ROWS, weights.shape[1])
