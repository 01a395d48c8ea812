"""When two examples count as the same: equal text after normalisation, equal image or row bytes."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lissome.core.task import SplitName


def example_key(example: Any) -> bytes:
    """16 bytes that are equal for examples that count as duplicates.

    Texts: after Unicode NFKC, case folding and collapsing white space. Arrays: dtype, shape and bytes. Tuples, lists and dicts: part by part.
    """
    return hashlib.blake2b(_spelled(example), digest_size=16).digest()


def _spelled(part: Any) -> bytes:
    """Bytes that name the value and where it ends, so that neighbouring parts do not run together."""
    if isinstance(part, str):
        text = " ".join(unicodedata.normalize("NFKC", part).casefold().split()).encode("utf-8", "surrogatepass")
        return b"s%d:%b" % (len(text), text)
    if isinstance(part, np.ndarray):
        return f"a{part.dtype.str}{part.shape}:".encode() + np.ascontiguousarray(part).tobytes()
    if isinstance(part, Mapping):
        return _spelled([item for key in sorted(part) for item in (key, part[key])])
    if isinstance(part, Sequence) and not isinstance(part, (bytes, bytearray)):
        return b"l%d:%b" % (len(part), b"".join(map(_spelled, part)))
    return f"o{part!r};".encode("utf-8", "surrogatepass")


def keys_of(examples: Iterable[Any]) -> list[bytes]:
    """example_key of each."""
    return [example_key(example) for example in examples]


def repeats(keys: Sequence[bytes]) -> int:
    """How many examples are copies of an earlier one."""
    return len(keys) - len(set(keys))


def shared(keys: Mapping[SplitName, Sequence[bytes]]) -> dict[tuple[SplitName, SplitName], list[int]]:
    """For each pair of splits that share examples: positions in the second one of those that also occur in the first."""
    found: dict[tuple[SplitName, SplitName], list[int]] = {}
    names = list(keys)
    for i, first in enumerate(names):
        seen = set(keys[first])
        for second in names[i + 1 :]:
            if at := [j for j, key in enumerate(keys[second]) if key in seen]:
                found[first, second] = at
    return found


def show(example: Any, width: int = 60) -> str:
    """An example as one short line for an error or a report."""
    if isinstance(example, np.ndarray) and example.ndim > 1:
        return f"an array of shape {tuple(example.shape)}"
    text = example if isinstance(example, str) else str(example.tolist() if isinstance(example, np.ndarray) else example)
    text = " ".join(text.split())
    return f'"{text[: width - 3]}..."' if len(text) > width else f'"{text}"'
