"""Arrays as the decoder's kernel reads and writes them: numpy's, at the beginning of a cache line.

What the kernel's types and calls are given may be anything that numpy takes as an array without a copy, a torch tensor on the CPU among them; what they hold
and give back is numpy's. Nothing here needs torch: loading it takes longer, and more memory, than opening a small model.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lissome.core.errors import BadInput

Array = np.ndarray[Any, Any]
LINE = 64
"""Bytes of a cache line."""


def room(shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> Array:
    """An array that begins at a cache line; what is in it is left to chance."""
    shape, kind = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    raw = np.empty(size + LINE, np.uint8)
    begin = -address(raw) % LINE
    return raw[begin : begin + size].view(kind).reshape(shape)


def untouched_zeros(shape: Sequence[int], dtype: DTypeLike) -> Array:
    """Zeros of which only what is written to takes memory. (numpy's own ask for pages of 2 MB: a line touched here and there makes all of it resident.)

    Raises BadInput where the system does not promise so much.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    try:
        memory = mmap.mmap(-1, max(1, size))
    except (OSError, OverflowError) as error:
        raise BadInput(f"there is no memory for {size / 1e9:,.1f} GB of keys and values", do="ask for a smaller --context, or fewer sequences") from error
    return np.frombuffer(memory, kind, size // kind.itemsize).reshape(shape)


def address(values: Array) -> int:
    """Where an array begins in memory."""
    found: int = values.ctypes.data
    return found


def hold(owner: object, *names: str) -> None:
    """Turn the fields of a frozen dataclass into numpy's arrays, where they are not None."""
    for name in names:
        given = getattr(owner, name)
        if given is not None and not isinstance(given, np.ndarray):
            object.__setattr__(owner, name, np.asarray(given))
