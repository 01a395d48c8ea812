"""What a layer keeps between calls, so that a decoder chooses token by token as it would in one go, and reads only the keys that it chose."""

from __future__ import annotations

import torch

from lissome.kernels.attention.selection import TILE
from lissome.nn.attention.chosen import pooled
from lissome.nn.attention.patterns import Sight


class Past:
    """Mean keys of the complete blocks, and the first query of the tile that the next query lies in.

    A call that does not go on where the last one ended starts anew: means are taken over all keys, and a tile whose first query is not known is chosen for
    by the first query that is.
    """

    def __init__(self) -> None:
        self.length = 0
        self.means: torch.Tensor | None = None
        self.first: torch.Tensor | None = None

    def look(self, q: torch.Tensor, k: torch.Tensor, causal: bool = True) -> Sight:
        """What a pattern looks at when `q` [batch, heads, queries, dim] stands at the end of `k` [batch, kv_heads, keys, dim]; remembered for the next call."""
        queries, keys = q.shape[2], k.shape[2]
        offset = keys - queries
        if not causal:
            return Sight(queries, keys, offset, q.shape[1], False, q, k)
        if offset != self.length or self.means is None or self.means.shape[:2] != k.shape[:2]:
            self.means, self.first = pooled(k[:, :, : offset // TILE * TILE]), None
        done, complete = self.means.shape[2] * TILE, keys // TILE * TILE
        if complete > done:
            self.means = torch.cat([self.means, pooled(k[:, :, done:complete])], 2)
        sight = Sight(queries, keys, offset, q.shape[1], True, q, k, self.first, self.means)
        start = keys // TILE * TILE
        if start >= offset:
            self.first = None if start == keys else q[:, :, start - offset].detach()
        self.length = keys
        return sight
