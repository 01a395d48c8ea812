"""Weight matrices as the kernel reads them, and back: tiles of 16 rows, codes of 4 or 8 bits with a scale and an offset for each group of columns.

A weight is scale * code + offset, with codes 0..15 or -128..127 and scale and offset in half precision; `native/matrix.h` has the layout in bytes. Matrices
of feed-forward parts that skip neurons are laid out row by row instead (`native/decoder.h`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch

from lissome.core.errors import BadInput

ROWS = 16
GROUPS = (32, 64, 128)
BLOCK = 64
Bits = Literal[4, 8, 32]
Layout = Literal["tiles", "neurons"]


@dataclass(frozen=True)
class Codes:
    """A matrix in codes. codes: [rows, columns] uint8 (4 bits: 0..15) or int8; scale, offset: [rows, columns / group] float16."""

    codes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor

    @property
    def group(self) -> int:
        """How many columns share a scale."""
        return self.codes.shape[1] // self.scale.shape[1]

    @property
    def bits(self) -> Bits:
        """Of a code."""
        return 4 if self.codes.dtype == torch.uint8 else 8

    def dense(self) -> torch.Tensor:
        """The weights they stand for [rows, columns], float32."""
        wide = self.codes.float().view(len(self.codes), -1, self.group)
        weights: torch.Tensor = wide * self.scale.float()[..., None] + self.offset.float()[..., None]
        return weights.flatten(1)


@dataclass(frozen=True)
class Packed:
    """A matrix of `rows` x `columns` in the kernel's layout. data: bytes, uint8 [n], 64-byte aligned where they were made here."""

    data: torch.Tensor
    rows: int
    columns: int
    bits: Bits
    group: int
    layout: Layout = "tiles"

    def __post_init__(self) -> None:
        expected = packed_bytes(self.rows, self.columns, self.bits, self.group, self.layout)
        if self.data.dtype != torch.uint8 or self.data.numel() != expected:
            raise BadInput(f"{self.data.numel():,} bytes cannot be {self.rows} x {self.columns} weights of {self.bits} bits", expected=f"{expected:,} bytes")


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


def pack(weights: torch.Tensor | Codes) -> Packed:
    """Floats [rows, columns], or codes, in the kernel's layout; nothing is rounded."""
    if isinstance(weights, Codes):
        return _pack_codes(weights)
    rows, columns = weights.shape
    packed_bytes(rows, columns, 32, GROUPS[0])
    tiles = _tiled(weights.float())  # [tiles, 16, columns]
    return Packed(tiles.transpose(1, 2).contiguous().view(torch.uint8).flatten(), rows, columns, 32, GROUPS[0])


def _pack_codes(weights: Codes) -> Packed:
    rows, columns = weights.codes.shape
    bits, group = weights.bits, weights.group
    packed_bytes(rows, columns, bits, group)
    if bits == 4 and int(weights.codes.max()) > 15:
        raise BadInput(f"a code of {int(weights.codes.max())} does not fit into 4 bits", expected="0 to 15")
    in_word = 32 // bits
    codes = _tiled(weights.codes).long() & (1 << bits) - 1
    words = codes.view(codes.shape[0], ROWS, -1, group // in_word, in_word)
    shifts = torch.arange(in_word) * bits
    words = (words << shifts).sum(-1)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).int()  # [tiles, 16, groups, words]
    heads = torch.stack([_tiled(weights.scale.half()), _tiled(weights.offset.half())], 1)  # [tiles, 2, 16, groups]
    tiles, groups = words.shape[0], words.shape[2]
    first = heads.permute(0, 3, 1, 2).contiguous().view(torch.uint8).view(tiles, groups, 64)
    rest = words.permute(0, 2, 3, 1).contiguous().view(torch.uint8).view(tiles, groups, -1)
    return Packed(torch.cat([first, rest], 2).flatten(), rows, columns, bits, group)


def pack_by_neuron(weights: torch.Tensor | Codes) -> Packed:
    """As `pack`, one row after the other, so that a row can be left unread."""
    if not isinstance(weights, Codes):
        rows, columns = weights.shape
        packed_bytes(rows, columns, 32, GROUPS[0], "neurons")
        return Packed(weights.detach().float().contiguous().view(torch.uint8).flatten(), rows, columns, 32, GROUPS[0], "neurons")
    rows, columns = weights.codes.shape
    bits, group = weights.bits, weights.group
    packed_bytes(rows, columns, bits, group, "neurons")
    codes = torch.nn.functional.pad(weights.codes.long() & (1 << bits) - 1, (0, -columns % BLOCK)).view(rows, -1, 4, BLOCK // 4)
    words = (codes << (torch.arange(4) * bits)[:, None]).sum(2)  # [rows, blocks, 16]
    narrow = torch.where(words >= 1 << 4 * bits - 1, words - (1 << 4 * bits), words).to(torch.int16 if bits == 4 else torch.int32)
    parts = [one.contiguous().view(torch.uint8).view(rows, -1) for one in (weights.scale.half(), weights.offset.half(), narrow)]
    return Packed(torch.cat(parts, 1).flatten(), rows, columns, bits, group, "neurons")


def _unpack_by_neuron(packed: Packed) -> torch.Tensor | Codes:
    rows, columns, bits, heads = packed.rows, packed.columns, packed.bits, packed.columns // packed.group * 2
    if bits == 32:
        return packed.data.view(torch.float32).view(rows, columns)
    whole = packed.data.view(rows, -1)
    scale, offset = (whole[:, heads * i : heads * (i + 1)].contiguous().view(torch.float16) for i in range(2))
    words = whole[:, 2 * heads :].contiguous().view(torch.int16 if bits == 4 else torch.int32).int().view(rows, -1, 1, BLOCK // 4)
    codes = (words >> (torch.arange(4) * bits)[:, None] & (1 << bits) - 1).flatten(1)[:, :columns]
    return Codes(codes.to(torch.uint8) if bits == 4 else codes.to(torch.uint8).view(torch.int8), scale, offset)


def unpack(packed: Packed) -> torch.Tensor | Codes:
    """What was packed."""
    if packed.layout == "neurons":
        return _unpack_by_neuron(packed)
    tiles, group, bits = -(-packed.rows // ROWS), packed.group, packed.bits
    if bits == 32:
        return packed.data.view(torch.float32).view(tiles, packed.columns, ROWS).transpose(1, 2).reshape(-1, packed.columns)[: packed.rows]
    whole = packed.data.view(tiles, packed.columns // group, -1)
    heads = whole[:, :, :64].contiguous().view(torch.float16).view(tiles, -1, 2, ROWS).permute(2, 0, 3, 1).reshape(2, tiles * ROWS, -1)[:, : packed.rows]
    words = whole[:, :, 64:].contiguous().view(torch.int32).view(tiles, packed.columns // group, -1, ROWS).permute(0, 3, 1, 2)
    codes = (words[..., None] >> torch.arange(32 // bits) * bits) & (1 << bits) - 1
    codes = codes.reshape(tiles * ROWS, -1)[: packed.rows]
    return Codes(codes.to(torch.uint8) if bits == 4 else codes.to(torch.uint8).view(torch.int8), heads[0].contiguous(), heads[1].contiguous())


def chosen_rows(packed: Packed, rows: torch.Tensor) -> Packed:
    """The rows [n] int64 of a matrix in tiles as a matrix of their own; nothing is rounded, and only the tiles that they lie in are unpacked."""
    tiles, place = torch.unique(rows // ROWS, return_inverse=True)
    data = packed.data.view(-(-packed.rows // ROWS), -1)[tiles].flatten()
    found = unpack(dataclasses.replace(packed, data=data, rows=len(tiles) * ROWS))
    at = place * ROWS + rows % ROWS
    if isinstance(found, torch.Tensor):
        return pack(found[at])
    return pack(dataclasses.replace(found, codes=found.codes[at], scale=found.scale[at], offset=found.offset[at]))


def _tiled(weights: torch.Tensor) -> torch.Tensor:
    """[rows, ...] as [tiles, 16, ...], rows of zeros at the end."""
    missing = -weights.shape[0] % ROWS
    if missing:
        weights = torch.cat([weights, weights.new_zeros(missing, *weights.shape[1:])])
    return weights.reshape(-1, ROWS, *weights.shape[1:])
