"""GGUF files: metadata and tensors, read in place. Every length in the file is checked against the file's own size before anything is made of it.

The format is llama.cpp's (ggml-org/ggml, docs/gguf.md, version 3). Blocks of 32 weights: Q4_0 (a scale, codes around 8), Q4_1 (a scale and an offset),
Q8_0 (a scale, codes of 8 bits).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lissome.core.errors import BadModel
from lissome.kernels.decoder.arrays import Array
from lissome.kernels.decoder.packed import Codes
from lissome.nn.mapped import Mapped, Span, widened

MAGIC, VERSIONS, ALIGNMENT, BLOCK = b"GGUF", (2, 3), 32, 32
DEEPEST, DIMENSIONS = 2, 4
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", BLOCK, 18), 3: ("Q4_1", BLOCK, 20), 8: ("Q8_0", BLOCK, 34), 30: ("BF16", 1, 2)}
"""Type number -> name, weights a block, bytes a block."""
FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Entry:
    """A tensor in the file. shape: rows first; start: first byte, from the beginning of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def span(self) -> Span:
        """Its bytes in the file."""
        return self.start, self.start + self.size


@dataclass(frozen=True)
class Gguf:
    """An open file. metadata: keys and values as they stand; entries: tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    entries: Mapping[str, Entry]
    mapped: Mapped

    def tensor(self, name: str) -> Array | Codes:
        """A tensor: floats as float32, codes as codes. Nothing is rounded. Raises BadModel where there is none."""
        if name not in self.entries:
            raise BadModel(f'there is no tensor "{name}".', where=str(self.path), expected="a whole model of the architecture that it names")
        return slice_rows(self, name, 0, self.entries[name].shape[0])


def slice_rows(file: Gguf, name: str, begin: int, end: int) -> Array | Codes:
    """Rows [begin, end) of a tensor that the file has, as `Gguf.tensor` gives them."""
    entry = file.entries[name]
    each, shape = entry.size // entry.shape[0], (end - begin, *entry.shape[1:])
    raw = file.mapped.bytes[entry.start + each * begin : entry.start + each * end]
    if entry.kind in FLOATS:
        return widened(raw.view(FLOATS[entry.kind]).reshape(shape), entry.kind)
    return _codes(raw.reshape(*shape[:-1], shape[-1] // BLOCK, -1), entry.kind)


def _codes(blocks: Array, kind: str) -> Codes:
    """Blocks [rows, blocks, bytes] as codes; a code c of Q4_0 stands for scale * (c - 8), so its offset is -8 scales, exactly."""
    rows, count, _ = blocks.shape
    scale = blocks[..., :2].copy().view("<f2")[..., 0]
    if kind == "Q8_0":
        return Codes(blocks[..., 2:].view(np.int8).reshape(rows, count * BLOCK), scale, np.zeros((rows, count), np.float16))
    offset = blocks[..., 2:4].copy().view("<f2")[..., 0] if kind == "Q4_1" else np.float16(-8) * scale
    nibbles = blocks[..., 4 if kind == "Q4_1" else 2 :]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], -1).reshape(rows, count * BLOCK)
    return Codes(codes, scale, offset)


def read_gguf(path: Path) -> Gguf:
    """Open a file. Raises BadModel where it is none, is cut short, or holds a type that is not offered (named)."""
    mapped = Mapped(path)
    if mapped.size < 24:
        raise BadModel(f"it has {mapped.size} bytes and is no GGUF file", where=str(path))
    data = mapped.bytes.data
    reader = _Reader(data, path)
    if bytes(data[:4]) != MAGIC:
        raise BadModel("it does not begin with GGUF", where=str(path), expected="a GGUF file")
    reader.at = 4
    version = reader.number("<I")
    if version not in VERSIONS:
        raise BadModel(f"it is of GGUF version {version}", where=str(path), expected="version 2 or 3, little-endian")
    tensors, pairs = reader.number("<Q"), reader.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(reader.count(pairs, 13, "entries of metadata")):
        key = reader.string()
        metadata[key] = reader.value(reader.number("<I"))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment > 1 << 20:
        raise BadModel(f"its alignment is {alignment}", where=str(path), expected="a small whole number")
    found = [_info(reader) for _ in range(reader.count(tensors, 24, "tensors"))]
    start = -(-reader.at // alignment) * alignment
    entries: dict[str, Entry] = {}
    for name, kind, shape, offset in found:
        entries[name] = _entry(reader, name, kind, shape, start + offset)
    return Gguf(path, metadata, entries, mapped)


def _info(reader: _Reader) -> tuple[str, int, tuple[int, ...], int]:
    name, dimensions = reader.string(), reader.number("<I")
    if not 1 <= dimensions <= DIMENSIONS:
        raise BadModel(f'the tensor "{name}" has {dimensions} dimensions', where=str(reader.path), expected=f"1 to {DIMENSIONS}")
    shape = tuple(reader.number("<Q") for _ in range(dimensions))[::-1]
    return name, reader.number("<I"), shape, reader.number("<Q")


def _entry(reader: _Reader, name: str, kind: int, shape: tuple[int, ...], start: int) -> Entry:
    if kind not in TYPES:
        raise BadModel(f'the tensor "{name}" is of type {kind}', where=str(reader.path), expected=", ".join(one for one, _, _ in TYPES.values()))
    word, block, each = TYPES[kind]
    length = 1
    for width in shape:
        length *= width
    if length < 1 or shape[-1] % block or (block > 1 and len(shape) != 2):
        raise BadModel(f'the tensor "{name}" has the shape {list(shape)}', where=str(reader.path), expected=f"rows of a multiple of {block}")
    size = length // block * each
    if start + size > len(reader.data):
        raise BadModel(f'the tensor "{name}" ends at byte {start + size:,}, and the file at {len(reader.data):,}', where=str(reader.path), do="fetch it again")
    return Entry(name, word, shape, start, size)


class _Reader:
    """Numbers and strings from a place that moves on; never past the end."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def number(self, form: str) -> Any:
        size = struct.calcsize(form)
        self._room(size)
        self.at += size
        return struct.unpack_from(form, self.data, self.at - size)[0]

    def string(self) -> str:
        length = self.number("<Q")
        self._room(length)
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY or depth >= DEEPEST:
            raise BadModel(f"a value of its metadata is of type {kind}", where=str(self.path), expected="a type of GGUF version 3")
        inner, length = self.number("<I"), self.number("<Q")
        least = struct.calcsize(SCALARS[inner]) if inner in SCALARS else 8
        self.count(length, least, "values of an array")
        if inner in SCALARS:
            self.at += length * least
            return np.frombuffer(self.data, np.dtype(SCALARS[inner]), length, self.at - length * least).tolist()
        return [self.value(inner, depth + 1) for _ in range(length)]

    def count(self, length: int, least: int, what: str) -> int:
        """A number of things, each of at least so many bytes; more than the file can hold is an error before anything is made."""
        if length * least > len(self.data) - self.at:
            raise BadModel(f"it claims {length:,} {what}, more than its {len(self.data):,} bytes can hold", where=str(self.path), do="fetch it again")
        return length

    def _room(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise BadModel(f"it ends at byte {len(self.data):,}, in the middle of its header", where=str(self.path), do="fetch it again")
