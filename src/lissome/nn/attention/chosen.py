"""Patterns that look at queries and keys: the blocks that score highest for a tile of queries, and single tokens by their importance.

A tile's choice depends on its first query and on blocks that end before it, never on what comes later: outputs up to t do not change with the future, and
a decoder that keeps the first query of its tile makes the same choice token by token (`past`). Blocks chosen by the mean query of a tile, as in
SpargeAttn, would leak the future inside the tile.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch.nn import functional

from lissome.kernels.attention.selection import FULL, TILE, Selection, blocks_of, tiles_of
from lissome.nn.attention.patterns import Pattern, at_least, of_tokens
from lissome.nn.attention.sight import Sight

FLOATS = 1 << 22
"""How many floats of scores are held at once."""
Scorer = Callable[[torch.Tensor, Sight], torch.Tensor]
"""(queries [batch, heads, tiles, dim], what the pattern looks at) -> scores of blocks [batch, heads, tiles, blocks]."""


def pooled_keys(queries: torch.Tensor, sight: Sight) -> torch.Tensor:
    """A block's score is its mean key's (MoBA, Lu et al. 2025)."""
    if sight.documents is not None and sight.known is None and sight.k is not None:
        means = pooled(sight.k, sight.documents >= 0)
    else:
        means = sight.of_keys("pooled_keys", pooled)
    return queries.float() @ means.repeat_interleave(queries.shape[1] // means.shape[1], 1).transpose(-1, -2)


def pooled(keys: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
    """Mean key of every block [batch, kv_heads, blocks, dim], float32; of those `present` [batch, keys] bool, if given, and 0 where none is."""
    batch, heads, length, dim = keys.shape
    there = torch.ones(1, length, dtype=torch.bool, device=keys.device) if present is None else present
    there = functional.pad(there, (0, -length % TILE)).view(len(there), 1, blocks_of(length), TILE, 1)
    padded = functional.pad(keys.float(), (0, 0, 0, -length % TILE)).reshape(batch, heads, blocks_of(length), TILE, dim)
    sums: torch.Tensor = (padded if present is None else padded * there).sum(3)
    return sums / there.sum(3).clamp(min=1)


def leading_query(queries: torch.Tensor, sight: Sight) -> torch.Tensor:
    """A block's score is the attention that the tile's first query pays its keys, in logarithms: exact, at the price of one query in 64 that sees all.

    Where the mean of 64 keys says little, as in some layers of SmolLM2, this finds nearly what an oracle does (benchmarks/long_inputs.py).
    """
    return once_a_tile("leading_query", queries, sight, lambda: block_logits(queries, sight))


def once_a_tile(who: Hashable, queries: torch.Tensor, sight: Sight, scores: Callable[[], torch.Tensor]) -> torch.Tensor:
    """`scores()`, or what the scorer `who` said before in the same tile of a decoder: there it asks for the same query and the same blocks before it."""
    tile, lead = divmod(sight.offset, TILE)
    kept = sight.known if queries.shape[2] == 1 and (sight.first is not None or not lead) else None
    if kept is not None and kept.get(("scored", who), (None,))[0] == tile:
        known: torch.Tensor = kept["scored", who][1]
        return known
    found = scores()
    if kept is not None:
        kept["scored", who] = tile, found
    return found


@torch.no_grad()
def block_logits(queries: torch.Tensor, sight: Sight) -> torch.Tensor:
    """log of the sum of exp(query . key / sqrt(dim)) over every block's keys [batch, heads, tiles, blocks]; -inf for blocks of padding, and, where
    attention is causal, for blocks that begin beyond the tile."""
    assert sight.k is not None
    batch, heads, tiles, dim = queries.shape
    blocks, first = blocks_of(sight.keys), sight.offset // TILE
    keys = functional.pad(sight.k.float(), (0, 0, 0, -sight.keys % TILE)).transpose(-1, -2)  # [batch, kv_heads, dim, keys]
    there = torch.arange(keys.shape[-1], device=keys.device) < sight.keys
    present = there[None] if sight.documents is None else functional.pad(sight.documents >= 0, (0, -sight.keys % TILE)) & there
    hides = torch.zeros(present.shape, device=keys.device).masked_fill(~present, float("-inf"))[:, None, None, None]
    scaled = (queries.float() * dim**-0.5).view(batch, keys.shape[1], -1, tiles, dim)
    found = queries.new_full((batch, heads, tiles, blocks), float("-inf"), dtype=torch.float32)
    step = max(1, FLOATS // (batch * heads * keys.shape[-1]))
    for begin in range(0, tiles, step):
        end = min(begin + step, tiles)
        width = min(blocks, first + end) if sight.causal else blocks  # what lies beyond the last tile of these is never chosen
        logits = scaled[:, :, :, begin:end] @ keys[:, :, None, :, : width * TILE] + hides[..., : width * TILE]
        found[:, :, begin:end, :width] = logits.view(batch, heads, end - begin, width, TILE).logsumexp(-1)
    return found


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
        return f"top_blocks({self.count}{_by(self.scorer)})"

    def visits(self, sight: Sight) -> Selection:
        """The chosen blocks, each shown whole."""
        return best_blocks(self, sight, self.scorer, lambda tiles, blocks: torch.full_like(tiles, self.count))


def top_blocks(count: int, scorer: Scorer = pooled_keys) -> TopBlocks:
    """The `count` blocks of 64 keys that score highest for each tile of 64 queries; all of them where there are fewer, as at a text's begin."""
    at_least("top_blocks", count)
    return TopBlocks(count, scorer)


@dataclass(frozen=True)
class TopShare(Pattern):
    """A share of the blocks: those that score highest for each tile and head, as `TopBlocks`, and as many as the tile's place says."""

    share: float
    scorer: Scorer = pooled_keys

    @property
    def name(self) -> str:  # type: ignore[override]
        """As it is written."""
        return f"top_share({self.share}{_by(self.scorer)})"

    def visits(self, sight: Sight) -> Selection:
        """The chosen blocks, each shown whole. Causal: a share of the blocks before the tile, so that a length not yet reached changes nothing."""
        return best_blocks(self, sight, self.scorer, lambda tiles, blocks: ((tiles if sight.causal else blocks) * self.share).ceil().long())


def top_share(share: float, scorer: Scorer = pooled_keys) -> TopShare:
    """The blocks that score highest, `share` of those that a tile may see (0 < share <= 1), at least one."""
    if not 0 < share <= 1:
        raise ValueError(f"top_share: a share of {share:g} is not above 0 and at most 1")
    return TopShare(share, scorer)


@torch.no_grad()
def best_blocks(pattern: Pattern, sight: Sight, scorer: Scorer, counts: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Selection:
    """The blocks that score highest for each tile and head. counts(numbers of the tiles [tiles], how many blocks hold keys [b, 1, 1]) -> how many to take."""
    if sight.q is None or sight.k is None:
        raise ValueError(f"{pattern.name} chooses by queries and keys: give both")
    with torch.autocast(sight.q.device.type, enabled=False):
        scores = scorer(leading(sight), sight)
    scores = scores.masked_fill(hidden(sight, scores.shape[-1]), float("-inf"))
    tiles = sight.offset // TILE + torch.arange(scores.shape[2], device=scores.device)
    there = torch.full((1,), scores.shape[-1]) if sight.documents is None else real(sight.documents, TILE).sum(-1)
    count = counts(tiles, there.to(tiles)[:, None, None])
    best = scores.topk(min(int(count.max()), scores.shape[-1]), -1)
    rank = torch.arange(best.values.shape[-1], device=scores.device)
    none = torch.iinfo(torch.int32).max
    blocks = torch.where((best.values == float("-inf")) | (rank >= count[..., None]), none, best.indices).sort(dim=-1).values
    blocks = torch.where(blocks == none, -1, blocks).int()
    bits = torch.zeros(0, TILE, dtype=torch.int64, device=scores.device)
    return Selection(blocks, torch.full_like(blocks, FULL), bits, sight.queries, sight.keys, sight.offset)


def _by(scorer: Scorer) -> str:
    return "" if scorer is pooled_keys else f", {scorer.__name__}"


def leading(sight: Sight) -> torch.Tensor:
    """The first query of every tile [batch, heads, tiles, dim]."""
    assert sight.q is not None
    tiles, lead = tiles_of(sight.queries, sight.offset), sight.offset % TILE
    rows = (torch.arange(tiles, device=sight.q.device) * TILE - lead).clamp(min=0)
    found = sight.q[:, :, rows]
    return found if sight.first is None or not lead else torch.cat([sight.first[:, :, None], found[:, :, 1:]], 2)


def hidden(sight: Sight, blocks: int) -> torch.Tensor:
    """Blocks that may not be chosen [b, h, tiles, blocks]: those that do not end before the tile, where attention is causal; shown already; all padding."""
    assert sight.k is not None
    tiles, device = tiles_of(sight.queries, sight.offset), sight.k.device
    numbers = torch.arange(blocks, device=device)
    found = torch.zeros(1, 1, tiles, blocks, dtype=torch.bool, device=device)
    if sight.causal:
        found = found | (numbers >= (sight.offset // TILE + torch.arange(tiles, device=device))[:, None])
    if sight.shown is not None:
        whole = torch.where((sight.shown.masks == FULL) & (sight.shown.blocks >= 0) & (sight.shown.blocks < blocks), sight.shown.blocks, blocks).long()
        shown = torch.zeros(*whole.shape[:3], blocks + 1, dtype=torch.bool, device=device).scatter_(3, whole, True)
        found = found | shown[..., :blocks]
    if sight.documents is not None:
        found = found | ~real(sight.documents, TILE)[:, None, None, :blocks]
    return found


def real(documents: torch.Tensor, every: int) -> torch.Tensor:
    """Whether any key of each stretch of `every` is no padding [batch, stretches]."""
    batch, keys = documents.shape
    return functional.pad(documents >= 0, (0, -keys % every)).view(batch, -1, every).any(-1)


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
        return of_tokens(first_of((self.importance >= self.threshold)[:, None], self.most), sight)


def first_of(chosen: torch.Tensor, most: int) -> torch.Tensor:
    """Positions of the first `most` keys that are chosen, [b, h, keys] bool -> [b, h, extra], rising; -1 where there are fewer."""
    rank = chosen.cumsum(-1) - 1
    extra = max(1, min(most, int(rank[..., -1].max()) + 1 if chosen.numel() else 0))
    positions = torch.full((*chosen.shape[:2], extra), -1, dtype=torch.int64, device=chosen.device)
    at = (chosen & (rank < most)).nonzero(as_tuple=True)
    positions[at[0], at[1], rank[at]] = at[2]
    return positions


def important(importance: torch.Tensor, threshold: float, most: int = TILE) -> Important:
    """Global tokens by importance [batch, keys], such as the entropy of each token's prediction (`entropy`); at most `most` of them, a budget."""
    at_least("important", most)
    return Important(importance, threshold, most)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of a prediction [..., classes] in nats [...]: high where a model is unsure of what comes next."""
    logs = functional.log_softmax(logits.float(), -1)
    return -(logs.exp() * logs).sum(-1)
