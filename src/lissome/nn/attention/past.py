"""What a layer keeps between calls, so that a decoder chooses token by token as it would in one go, and reads only the keys that it chose."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from lissome.kernels.attention.selection import TILE
from lissome.nn.attention.sight import Sight


class Past:
    """What scorers worked out of the keys, such as the mean key of every complete block, and the first query of the tile that the next query lies in.

    A call that does not go on where the last one ended starts anew: all is worked out again from the keys, and a tile whose first query is not known is
    chosen for by the first query that is.
    """

    def __init__(self) -> None:
        self.length = 0
        self.shape: tuple[int, ...] = ()
        self.known: dict[Hashable, Any] = {}
        self.first: torch.Tensor | None = None

    def look(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        causal: bool = True,
        indexer: Callable[[torch.Tensor, Sight], torch.Tensor] | None = None,
        importance: Callable[[torch.Tensor, Sight], torch.Tensor] | None = None,
    ) -> Sight:
        """What a pattern looks at when `q` [batch, heads, queries, dim] stands at the end of `k` [batch, kv_heads, keys, dim]; remembered for the next call."""
        queries, keys = q.shape[2], k.shape[2]
        offset = keys - queries
        if not causal:
            return Sight(queries, keys, offset, q.shape[1], False, q, k, indexer=indexer, importance=importance)
        if offset != self.length or self.shape != k.shape[:2]:
            self.known, self.first = {}, None
        sight = Sight(queries, keys, offset, q.shape[1], True, q, k, self.first, self.known, indexer=indexer, importance=importance)
        start = keys // TILE * TILE
        if start >= offset:
            self.first = None if start == keys else q[:, :, start - offset].detach()
        self.length, self.shape = keys, tuple(k.shape[:2])
        return sight
