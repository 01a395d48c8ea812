"""What a teacher said, on disk: one array an example, found by what the example holds.

Every process that adds records writes a pair of files of its own: `NAME.data`, the arrays one after another, and `NAME.index`, where each begins. An
index entry is written after its data, and one that points beyond the data is ignored: what a killed process left is whole or not seen. Arrays are
read through a memory map.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lissome.core.cache import Cache, disk_errors

ENTRY = np.dtype([("key", "V16"), ("offset", "<i8"), ("length", "<i8")])
LAYOUT = "layout.json"


@dataclass(frozen=True)
class Layout:
    """The arrays of one store: their dtype, the shape of one row, and whether an array has a row for each token (else it is one row)."""

    dtype: str
    row: tuple[int, ...]
    per_token: bool

    def bytes(self, length: int) -> int:
        """Size of the array of an example with `length` tokens."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.row, dtype=np.int64) * (length if self.per_token else 1))


class Store:
    """Arrays of one layout in the cache entry teacher/key, which is there from the first array on."""

    def __init__(self, cache: Cache, key: str):
        self.cache, self.key = cache, key
        self.folder = cache.path("teacher", key)
        self.layout: Layout | None = None
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

    def get(self, key: bytes) -> np.ndarray:
        """The array under `key`: [tokens, ...] or [...]. Raises KeyError."""
        path, offset, length = self._where[key]
        assert self.layout is not None
        end = offset + self.layout.bytes(length)
        if path not in self._maps or len(self._maps[path]) < end:
            if path == self._own and self._files:
                self._files[0].flush()
            self._maps[path] = np.memmap(path, dtype=np.uint8, mode="r")
        shape = (length, *self.layout.row) if self.layout.per_token else self.layout.row
        return np.frombuffer(self._maps[path][offset:end], dtype=self.layout.dtype).reshape(shape)

    def put(self, key: bytes, array: np.ndarray, layout: Layout, length: int) -> bool:
        """Add the array of an example of `length` tokens; whether it was added: not when it is there, or of another layout than those before it."""
        if key in self._where or self.layout not in (None, layout):
            return False
        with disk_errors("the teacher's outputs", self.cache.root):
            data, index = self._open(layout)
            offset = data.tell()
            data.write(np.ascontiguousarray(array, dtype=layout.dtype).tobytes())
            index.write(np.array([(key, offset, length)], dtype=ENTRY).tobytes())
        assert self._own is not None
        self._where[key] = (self._own, offset, length)
        self.used += layout.bytes(length)
        return True

    def close(self) -> None:
        """Bring what was added to the disk, data first; it can still be read."""
        for file in self._files or ():
            with disk_errors("the teacher's outputs", self.folder):
                file.flush()
                os.fsync(file.fileno())
            file.close()
        self._files = None

    def _open(self, layout: Layout) -> tuple[Any, Any]:
        if self._files is None:
            text = json.dumps(asdict(layout))
            self.folder = self.cache.folder("teacher", self.key, lambda empty: _write(empty / LAYOUT, text))
            self.layout = layout
            self._own = self.folder / f"{uuid.uuid4().hex}.data"
            self._files = (self._own.open("wb"), self._own.with_suffix(".index").open("wb"))
        return self._files

    def _read(self) -> None:
        """Take in what earlier runs left. A damaged layout counts as nothing kept."""
        try:
            held = json.loads((self.folder / LAYOUT).read_text(encoding="utf-8"))
            self.layout = Layout(str(held["dtype"]), tuple(held["row"]), bool(held["per_token"]))
        except (OSError, ValueError, KeyError, TypeError):
            return
        for path in sorted(self.folder.glob("*.index")):
            data = path.with_suffix(".data")
            size = data.stat().st_size if data.is_file() else 0
            raw = path.read_bytes()
            for entry in np.frombuffer(raw[: len(raw) // ENTRY.itemsize * ENTRY.itemsize], dtype=ENTRY):
                offset, length = int(entry["offset"]), int(entry["length"])
                if offset + self.layout.bytes(length) <= size:
                    self._where.setdefault(entry["key"].tobytes(), (data, offset, length))
            self.used += size


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
