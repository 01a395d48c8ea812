"""Patterns that look at queries and keys: the blocks that score highest for a tile of queries, and single tokens by their importance.

A tile's choice depends on its first query and on blocks that end before it, never on what comes later: outputs up to t do not change with the future, and
a decoder that keeps the first query of its tile makes the same choice token by token (`cache`). Blocks chosen by the mean query of a tile, as in
SpargeAttn, would leak the future inside the tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from lissome.kernels.attention.selection import FULL, TILE, Selection, blocks_of, tiles_of
from lissome.nn.attention.patterns import Pattern, Sight, of_tokens

Scorer = Callable[[torch.Tensor, Sight], torch.Tensor]
"""(queries [batch, heads, tiles, dim], what the pattern looks at) -> scores of blocks [batch, heads, tiles, blocks]."""


def pooled_keys(queries: torch.Tensor, sight: Sight) -> torch.Tensor:
    """A block's score is its mean key's (MoBA, Lu et al. 2025)."""
    assert sight.k is not None
    means = pooled(sight.k) if sight.means is None else sight.means
    return queries.float() @ means.repeat_interleave(queries.shape[1] // means.shape[1], 1).transpose(-1, -2)


def pooled(keys: torch.Tensor) -> torch.Tensor:
    """Mean key of every block [batch, kv_heads, blocks, dim], float32."""
    length = keys.shape[2]
    padded = functional.pad(keys.float(), (0, 0, 0, -length % TILE))
    sums: torch.Tensor = padded.reshape(*keys.shape[:2], blocks_of(length), TILE, keys.shape[3]).sum(3)
    counts = torch.full((blocks_of(length), 1), float(TILE))
    counts[-1:] = length - TILE * (blocks_of(length) - 1)
    return sums / counts.to(sums.device)


def random_blocks(queries: torch.Tensor, sight: Sight) -> torch.Tensor:
    """Blocks by lot, the same in every call: what a scorer must beat."""
    tiles = sight.offset // TILE + queries.shape[2]
    lot = torch.rand(*queries.shape[:2], tiles, blocks_of(sight.keys), generator=torch.Generator().manual_seed(0))
    return lot[:, :, -queries.shape[2] :].to(queries.device)


@dataclass(frozen=True)
class TopBlocks(Pattern):
    """The `count` blocks that score highest for each tile and head, among those not shown whole by what stands left of the `|`."""

    count: int
    scorer: Scorer = pooled_keys

    @property
    def name(self) -> str:  # type: ignore[override]
        """As it is written."""
        return f"top_blocks({self.count})" if self.scorer is pooled_keys else f"top_blocks({self.count}, {self.scorer.__name__})"

    def visits(self, sight: Sight) -> Selection:
        """The chosen blocks, each shown whole."""
        if sight.q is None or sight.k is None:
            raise ValueError(f"{self.name} chooses by queries and keys: give both")
        scores = self.scorer(leading(sight), sight)
        scores = scores.masked_fill(_hidden(sight, scores.shape[-1]), float("-inf"))
        best = scores.topk(min(self.count, scores.shape[-1]), -1)
        blocks = torch.where(best.values == float("-inf"), torch.iinfo(torch.int32).max, best.indices).sort(dim=-1).values
        blocks = torch.where(blocks == torch.iinfo(torch.int32).max, -1, blocks).int()
        return Selection(blocks, torch.full_like(blocks, FULL), torch.zeros(0, TILE, dtype=torch.int64), sight.queries, sight.keys, sight.offset)


def top_blocks(count: int, scorer: Scorer = pooled_keys) -> TopBlocks:
    """The `count` blocks of 64 keys that score highest for each tile of 64 queries."""
    if count < 1:
        raise ValueError(f"top_blocks: {count} is too few; at least 1")
    return TopBlocks(count, scorer)


def leading(sight: Sight) -> torch.Tensor:
    """The first query of every tile [batch, heads, tiles, dim]."""
    assert sight.q is not None
    tiles, lead = tiles_of(sight.queries, sight.offset), sight.offset % TILE
    rows = (torch.arange(tiles, device=sight.q.device) * TILE - lead).clamp(min=0)
    found = sight.q[:, :, rows]
    return found if sight.first is None or not lead else torch.cat([sight.first[:, :, None], found[:, :, 1:]], 2)


def _hidden(sight: Sight, blocks: int) -> torch.Tensor:
    """Blocks that may not be chosen [b, h, tiles, blocks]: those that do not end before the tile, where attention is causal, and those shown already."""
    tiles = tiles_of(sight.queries, sight.offset)
    numbers = torch.arange(blocks)
    hidden = torch.zeros(1, 1, tiles, blocks, dtype=torch.bool)
    if sight.causal:
        hidden = hidden | (numbers >= (sight.offset // TILE + torch.arange(tiles))[:, None])
    if sight.shown is not None:
        whole = torch.where((sight.shown.masks == FULL) & (sight.shown.blocks >= 0) & (sight.shown.blocks < blocks), sight.shown.blocks, blocks).long()
        shown = torch.zeros(*whole.shape[:3], blocks + 1, dtype=torch.bool).scatter_(3, whole, True)
        hidden = hidden | shown[..., :blocks]
    return hidden


@dataclass(frozen=True)
class Important(Pattern):
    """Tokens whose importance is at least a threshold: global tokens that every later query sees (both ways: every query).

    A threshold, not a rank: whether a token is global then depends on nothing that comes after it. importance: [batch, keys], any scale.
    """

    importance: torch.Tensor
    threshold: float
    most: int

    name = "important(...)"

    def visits(self, sight: Sight) -> Selection:
        """Blocks of these tokens, visited by every tile; of more than `most`, the first ones."""
        if self.importance.ndim != 2 or self.importance.shape[1] != sight.keys:
            raise ValueError(f"{self.name}: importance must be [batch, keys = {sight.keys}], not {list(self.importance.shape)}")
        chosen = self.importance >= self.threshold
        rank = chosen.cumsum(1) - 1
        kept = chosen & (rank < self.most)
        positions = torch.full((len(chosen), max(1, min(self.most, int(chosen.sum(1).max())))), -1, dtype=torch.int64)
        owner, place = kept.nonzero(as_tuple=True)
        positions[owner, rank[owner, place]] = place
        return of_tokens(positions[:, None], sight)


def important(importance: torch.Tensor, threshold: float, most: int = TILE) -> Important:
    """Global tokens by importance [batch, keys], such as the entropy of each token's prediction (`entropy`); at most `most` of them, a budget."""
    if most < 1:
        raise ValueError(f"important: {most} is too few; at least 1")
    return Important(importance, threshold, most)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of a prediction [..., classes] in nats [...]: high where a model is unsure of what comes next."""
    logs = functional.log_softmax(logits.float(), -1)
    return -(logs.exp() * logs).sum(-1)
