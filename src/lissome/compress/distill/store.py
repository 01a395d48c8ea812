"""A teacher's outputs on disk, one record an example, found by what the example holds.

Every process that adds records writes a pair of files of its own: `NAME.data`, the arrays one after another, and `NAME.index`, where each begins. An
index entry is written after its data, and one that points beyond the data is ignored: what a killed process left is whole or not seen. Records are
read through a memory map.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lissome.core.cache import Cache, disk_errors

ENTRY = np.dtype([("key", "V16"), ("offset", "<i8"), ("length", "<i8")])
LAYOUT = "layout.json"


@dataclass(frozen=True)
class Field:
    """One array of a record: its dtype, the shape of one of its rows, and whether it has a row for each token (else one)."""

    name: str
    dtype: str
    row: tuple[int, ...]
    per_token: bool

    def bytes(self, length: int) -> int:
        """Size in a record of `length` tokens."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.row, dtype=np.int64) * (length if self.per_token else 1))


class Store:
    """Records of one teacher in the cache entry teacher/key; `most` bytes are kept at most. An entry is there from the first record on."""

    def __init__(self, cache: Cache, key: str, most: int):
        self.cache, self.key, self.most = cache, key, most
        self.folder = cache.path("teacher", key)
        self.fields: list[Field] = []
        self.used = 0
        self._where: dict[bytes, tuple[Path, int, int]] = {}
        self._maps: dict[Path, Any] = {}
        self._own: Path | None = None
        self._files: tuple[Any, Any] | None = None
        self._read()

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, key: bytes) -> bool:
        return key in self._where

    def get(self, key: bytes) -> dict[str, np.ndarray]:
        """The arrays under `key`: [tokens, ...] for those with a row for each token, [...] for the others. Raises KeyError."""
        path, offset, length = self._where[key]
        size = sum(field.bytes(length) for field in self.fields)
        raw = self._map(path, offset + size)[offset : offset + size]
        arrays, at = {}, 0
        for field in self.fields:
            end = at + field.bytes(length)
            shape = (length, *field.row) if field.per_token else field.row
            arrays[field.name] = np.frombuffer(raw[at:end], dtype=field.dtype).reshape(shape)
            at = end
        return arrays

    def put(self, key: bytes, arrays: dict[str, np.ndarray], fields: list[Field], length: int) -> bool:
        """Add a record of `length` tokens; whether it is kept: not when it is there, too much, or of another layout than those before it."""
        size = sum(field.bytes(length) for field in fields)
        if key in self._where or self.used + size > self.most or (self.fields and fields != self.fields):
            return False
        with disk_errors("the teacher's outputs", self.cache.root):
            data, index = self._open(fields)
            offset = data.tell()
            for field in fields:
                data.write(np.ascontiguousarray(arrays[field.name], dtype=field.dtype).tobytes())
            index.write(np.array([(key, offset, length)], dtype=ENTRY).tobytes())
        assert self._own is not None
        self._where[key] = (self._own, offset, length)
        self.used += size
        return True

    def flush(self) -> None:
        """Bring what was added to the disk, data first."""
        if self._files:
            with disk_errors("the teacher's outputs", self.folder):
                for file in self._files:
                    file.flush()
                    os.fsync(file.fileno())

    def close(self) -> None:
        """Flush and close the files; records can still be read."""
        self.flush()
        for file in self._files or ():
            file.close()
        self._files = None

    def _open(self, fields: list[Field]) -> tuple[Any, Any]:
        if self._files is None:
            text = json.dumps([[field.name, field.dtype, list(field.row), field.per_token] for field in fields])
            self.folder = self.cache.folder("teacher", self.key, lambda empty: _write(empty / LAYOUT, text))
            self.fields = self.fields or fields
            self._own = self.folder / f"{uuid.uuid4().hex}.data"
            self._files = (self._own.open("wb"), self._own.with_suffix(".index").open("wb"))
        return self._files

    def _map(self, path: Path, end: int) -> Any:
        """The bytes of a data file, at least up to `end`."""
        if path not in self._maps or len(self._maps[path]) < end:
            if path == self._own and self._files:
                self._files[0].flush()
            self._maps[path] = np.memmap(path, dtype=np.uint8, mode="r")
        return self._maps[path]

    def _read(self) -> None:
        """Take in what earlier runs left. A damaged layout counts as nothing kept."""
        try:
            rows = json.loads((self.folder / LAYOUT).read_text(encoding="utf-8"))
            self.fields = [Field(str(name), str(dtype), tuple(row), bool(per_token)) for name, dtype, row, per_token in rows]
        except (OSError, ValueError):
            return
        for path in sorted(self.folder.glob("*.index")):
            data = path.with_suffix(".data")
            held = data.stat().st_size if data.is_file() else 0
            raw = path.read_bytes()
            for entry in np.frombuffer(raw[: len(raw) // ENTRY.itemsize * ENTRY.itemsize], dtype=ENTRY):
                length, offset = int(entry["length"]), int(entry["offset"])
                size = sum(field.bytes(length) for field in self.fields)
                if offset + size <= held:
                    self._where.setdefault(entry["key"].tobytes(), (data, offset, length))
            self.used += held


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
