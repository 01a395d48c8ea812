"""Files read through a memory map: arrays are views of it, and its pages are loaded and given back by range.

A page of a mapped file counts as a process's memory from the moment it is touched until it is given back; the system may keep the file's contents in its own
cache all the while, which is no process's memory and goes when somebody needs the room.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import math
import mmap
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np

from lissome.core.errors import BadModel, EnvironmentLacks
from lissome.kernels.decoder.arrays import LINE, Array, address

DONTNEED, POPULATE_READ = 4, 22
"""madvise(2) on Linux: give the pages back; read them all now (since Linux 5.14)."""
HEADER_MOST = 100_000_000
"""Bytes of a safetensors header at the most, as the format's own reader has it."""
DIMENSIONS = 8
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""The format's types as numpy's, which has no bfloat16: its numbers stand as they are, the upper half of a float32's bits (see `widened`)."""
FLOATS = ("F32", "F16", "BF16")
Span = tuple[int, int]
"""First byte, and the one after the last, from the beginning of the file."""


class Mapped:
    """A file in memory, byte for byte, whose pages come and go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else None
        except OSError as error:
            raise unreadable(path, error) from error
        self.bytes: Array = np.frombuffer(self._map, np.uint8) if self._map else np.zeros(0, np.uint8)
        self.address = address(self.bytes)

    def span(self, values: Array) -> Span | None:
        """Where an array lies in the file; None where it is not a view of it."""
        start = address(values) - self.address
        return (start, start + values.nbytes) if 0 <= start < self.size else None

    def check(self) -> None:
        """Raise BadModel where the file has become shorter since it was opened: to touch what was cut off would end the process."""
        if self._map is not None and self._map.size() < self.size:
            raise BadModel("it can no longer be read: it has become shorter", where=str(self.path), do="check that nothing changes the file")

    def load(self, spans: Iterable[Span]) -> None:
        """Have these bytes in memory. Raises BadModel where the file has become shorter since it was opened, or the disk cannot be read."""
        for start, end in spans:
            code = _advise(self.address, start, end, POPULATE_READ)
            if code in (errno.EINVAL, errno.ENOSYS):
                self.bytes[start : end : mmap.PAGESIZE].sum()  # before Linux 5.14: touch a byte of each page
            elif code:
                raise BadModel(f"it can no longer be read: {os.strerror(code)}", where=str(self.path), do="check the disk, and that nothing changes the file")

    def drop(self, spans: Iterable[Span]) -> None:
        """Give the pages of these bytes back; whoever touches them again reads them again. Nothing is done where there is no Linux."""
        for start, end in spans if sys.platform.startswith("linux") else ():
            _advise(self.address, start, end, DONTNEED)

    def forget(self, spans: Iterable[Span]) -> None:
        """As `drop`, and the system's own copy too: the next reader reads from the disk."""
        with self.path.open("rb") as file:
            for start, end in spans:
                _advise(self.address, start, end, DONTNEED)
                os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same bytes in as few pieces as there are."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1] + mmap.PAGESIZE:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif end > start:
            found.append((start, end))
    return tuple(found)


def size_of(spans: Iterable[Span]) -> int:
    """Bytes of the pages that hold these spans."""
    return sum(-(-end // mmap.PAGESIZE) * mmap.PAGESIZE - start // mmap.PAGESIZE * mmap.PAGESIZE for start, end in spans)


def can_stream() -> None:
    """Raise EnvironmentLacks where pages cannot be given back."""
    if not sys.platform.startswith("linux"):
        raise EnvironmentLacks("a memory budget needs Linux, where pages of a file can be given back at once", do="run without --memory-budget")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. kind: as the format has it ("BF16"); start, end: bytes, from the beginning of the file."""

    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


class Tensors:
    """A safetensors file, read in place: every length, offset and count in it is checked against the file's own size before anything is made of it."""

    def __init__(self, path: Path) -> None:
        self.mapped = Mapped(path)
        self.path = path
        self.stored: Mapping[str, Stored] = _header(self.mapped)

    def array(self, name: str) -> Array:
        """A tensor over the file's own bytes (copied only where they do not lie as its type must). Raises BadModel where there is none."""
        one = self._stored(name)
        raw = self.mapped.bytes[one.start : one.end]
        aligned = raw if one.start % DTYPES[one.kind].itemsize == 0 else raw.copy()
        return aligned.view(DTYPES[one.kind]).reshape(one.shape)

    def floats(self, name: str) -> Array:
        """A tensor as float32, in memory of its own; its pages are given back. Raises BadModel where there is none, or it is not in floats."""
        one = self._stored(name)
        if one.kind not in FLOATS:
            raise BadModel(f'"{name}" is of {one.kind}', where=str(self.path), expected="float32, bfloat16 or float16")
        made = widened(self.array(name), one.kind)
        self.mapped.drop([(one.start, one.end)])
        return made

    def _stored(self, name: str) -> Stored:
        if name not in self.stored:
            raise BadModel(f'there is no tensor "{name}"', where=str(self.path), do="make it anew")
        return self.stored[name]


def widened(values: Array, kind: str) -> Array:
    """Numbers of F32, F16 or BF16 as float32, exactly, in memory of their own."""
    return (values.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else values.astype(np.float32)


def tensors_in(folder: Path) -> Mapping[str, Tensors]:
    """Name of a tensor -> the file that holds it, of a Hugging Face folder: what its index names, or `model.safetensors`, or every safetensors file.

    Raises BadModel for a folder without weights, a file that is broken, and an index that is none.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        paths = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
        if not paths:
            raise BadModel("there are no weights in it (*.safetensors)", where=str(folder), expected="a Hugging Face folder; pickles are not read")
        return {name: file for file in map(Tensors, paths) for name in file.stored}
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        parts = {part: Tensors(folder / Path(part).name) for part in set(named.values())}  # no part lies elsewhere
    except OSError as error:
        raise unreadable(index, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel("its index does not say which file holds which tensor", where=str(index), expected='{"weight_map": {tensor: file}}') from error
    return {name: parts[part] for name, part in named.items() if name in parts[part].stored}


def write_header(out: BinaryIO, raw: Mapping[str, int], floats: Mapping[str, tuple[int, ...]]) -> None:
    """The header of a safetensors file whose tensors follow in this order: bytes (name -> how many), then floats (name -> shape).

    The first begins at a cache line of the mapped file, and so do all that follow whole lines, as matrices in tiles are: a vector is loaded from one line, not
    two. Bytes whose number is no multiple of four would leave floats where they cannot be read in place: put none.
    """
    sizes = [(name, "U8", [size], size) for name, size in raw.items()]
    sizes += [(name, "F32", list(shape), 4 * math.prod(shape)) for name, shape in floats.items()]
    header, at = {}, 0
    for name, kind, shape, size in sizes:
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE)
    out.write(len(text).to_bytes(8, "little") + text)


def _header(mapped: Mapped) -> dict[str, Stored]:
    path = str(mapped.path)
    if mapped.size < 8:
        raise BadModel(f"it has {mapped.size} bytes and is no safetensors file", where=path, do="make it anew")
    length = int.from_bytes(mapped.bytes[:8].tobytes(), "little")
    if length > min(HEADER_MOST, mapped.size - 8):
        raise BadModel(f"it claims a header of {length:,} bytes, and has {mapped.size:,} in all", where=path, do="make it anew")
    try:
        found = json.loads(mapped.bytes[8 : 8 + length].tobytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadModel(f"its header is no JSON: {str(error).splitlines()[0]}", where=path, do="make it anew") from error
    if not isinstance(found, dict):
        raise BadModel("its header is no table of tensors", where=path, do="make it anew")
    return {name: _stored(path, name, entry, 8 + length, mapped.size) for name, entry in found.items() if name != "__metadata__"}


def _stored(path: str, name: str, entry: Any, begin: int, size: int) -> Stored:
    wrong = BadModel(f'its header does not say where the tensor "{name[:80]}" is', where=path, do="make it anew")
    if not isinstance(entry, dict):
        raise wrong
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or not _whole(shape) or not _whole(offsets) or len(offsets) != 2 or len(shape) > DIMENSIONS:
        raise wrong
    if kind not in DTYPES:
        raise BadModel(f'the tensor "{name[:80]}" is of type "{kind[:20]}"', where=path, expected=", ".join(DTYPES))
    start, end, wanted = begin + offsets[0], begin + offsets[1], DTYPES[kind].itemsize
    for width in shape:
        wanted *= width
    if end > size:
        raise BadModel(f'the tensor "{name[:80]}" ends at byte {end:,}, and the file at {size:,}', where=path, do="make it anew")
    if end - start != wanted:
        raise BadModel(f'the tensor "{name[:80]}" has {end - start:,} bytes and the shape {shape} of {kind}', where=path, expected=f"{wanted:,} bytes")
    return Stored(kind, tuple(shape), start, end)


def _whole(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(one) is int and one >= 0 for one in values)


def unreadable(path: Path, error: OSError) -> BadModel:
    """The error for a file that cannot be opened."""
    return BadModel(f"it cannot be read: {error.strerror or error}", where=str(path), do="check the path and its permissions")


@functools.lru_cache(maxsize=1)
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc


def _advise(address: int, start: int, end: int, advice: int) -> int:
    """madvise(2) on the pages that hold these bytes; other threads go on meanwhile. 0, or the error's number."""
    if end <= start:
        return 0
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    return ctypes.get_errno() if _libc().madvise(address + first, end - first, advice) else 0
