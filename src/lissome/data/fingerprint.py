"""A hash of what a task holds, whatever its tokenizer and wherever its files are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lissome.core.task import SPLITS, Task


def data_fingerprint(task: Task) -> str:
    """16 hex digits of every split's raw inputs and targets, in order. Unlike Task.fingerprint it knows nothing of how batches are made."""
    total = hashlib.sha256()
    for name in SPLITS:
        split = task.splits[name]
        total.update(f"{name}:{len(split)};".encode())
        for example in split.inputs:
            _add(total, example)
        _add(total, np.asarray(split.targets))
    return total.hexdigest()[:16]


def _add(total: Any, part: Any) -> None:
    """Add a value byte by byte, with its kind and length, so that neighbours do not run together."""
    if isinstance(part, str):
        text = part.encode("utf-8", "surrogatepass")
        total.update(b"s%d:" % len(text) + text)
    elif isinstance(part, np.ndarray) and not part.dtype.hasobject:
        total.update(f"a{part.dtype.str}{part.shape}:".encode() + np.ascontiguousarray(part).tobytes())
    elif isinstance(part, np.ndarray):
        _add(total, part.tolist())
    elif isinstance(part, Mapping):
        _add(total, [item for key in sorted(part) for item in (key, part[key])])
    elif isinstance(part, Sequence) and not isinstance(part, (bytes, bytearray)):
        total.update(b"l%d:" % len(part))
        for one in part:
            _add(total, one)
    else:
        total.update(f"o{part!r};".encode("utf-8", "surrogatepass"))
