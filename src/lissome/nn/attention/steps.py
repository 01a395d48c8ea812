"""A decoder's steps: what the queries of a tile see is worked out at the first of them, and every later one reads its own row of it."""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional

from lissome.kernels.attention.selection import TILE, Selection
from lissome.nn.attention.chosen import TopBlocks, TopShare
from lissome.nn.attention.patterns import Pattern, PerHead, Rule, Union, Within, select
from lissome.nn.attention.sight import Sight


def selected(pattern: Pattern, sight: Sight, documents: torch.Tensor | None = None) -> Selection:
    """`select(pattern, sight, documents)`; where a single query goes on, from what was kept of its tile (`sight.known`).

    No choice depends on more than a tile's first query and the blocks before it, so a tile's rows can be told before they are there. Patterns with tokens
    of their own are asked at every step: whether a key is one of them shows only when it has come.
    """
    if sight.known is None or sight.queries > 1 or documents is not None or not in_blocks(pattern):
        return select(pattern, sight, documents)
    tile = sight.offset // TILE
    number, kept = sight.known.get(("tile", pattern), (None, None))
    if number != tile:
        kept = select(pattern, _whole(sight))
        sight.known["tile", pattern] = tile, kept
    found: Selection = dataclasses.replace(kept, queries=1, keys=sight.keys, offset=sight.offset)
    return found


def in_blocks(pattern: Pattern) -> bool:
    """Whether a pattern shows stretches and blocks of keys alone, and no tokens of its own."""
    match pattern:
        case Union():
            return in_blocks(pattern.left) and in_blocks(pattern.right)
        case Within():
            return in_blocks(pattern.pattern)
        case PerHead():
            return all(in_blocks(one) for one in pattern.patterns)
    return isinstance(pattern, Rule | TopBlocks | TopShare)


def _whole(sight: Sight) -> Sight:
    """What the whole tile of the query looks at, keys that are not there yet being zeros: they lie in the tile's own block, which is never chosen."""
    assert sight.q is not None and sight.k is not None
    begin = sight.offset // TILE * TILE
    end = begin + TILE
    first = sight.q if sight.first is None else sight.first[:, :, None]
    keys = functional.pad(sight.k, (0, 0, 0, end - sight.keys))
    return dataclasses.replace(sight, queries=TILE, keys=end, offset=begin, q=first.expand(-1, -1, TILE, -1), k=keys, first=None, ahead=end - sight.keys)
