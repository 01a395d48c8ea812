"""Patterns that look at queries and keys: the blocks that score highest for a tile of queries, and single tokens by their importance.

A tile's choice depends on its first query and on blocks that end before it, never on what comes later: outputs up to t do not change with the future, and
a decoder that keeps the first query of its tile makes the same choice token by token (`past`). Blocks chosen by the mean query of a tile, as in
SpargeAttn, would leak the future inside the tile.

Documents packed in one row are chosen for as if each stood alone: scores, ranks, shares and budgets are of the keys of one document. A tile of queries that
holds several documents chooses for that of its first query; what it chose is hidden from the other rows, which see there what the rest of the pattern shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from lissome.core.errors import BadTensor
from lissome.kernels.attention.selection import FULL, TILE, Selection, blocks_of, tiles_of
from lissome.nn.attention.patterns import Pattern, at_least, of_tokens
from lissome.nn.attention.sight import Sight

FLOATS = 1 << 22
"""How many floats of scores are held at once."""
Scorer = Callable[[torch.Tensor, Sight], torch.Tensor]
"""(queries [batch, heads, tiles, dim], what the pattern looks at) -> scores of blocks [batch, heads, tiles, blocks]."""


def pooled_keys(queries: torch.Tensor, sight: Sight) -> torch.Tensor:
    """A block's score is its mean key's (MoBA, Lu et al. 2025)."""
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
        return best_blocks(self, sight, self.scorer, lambda blocks: torch.full_like(blocks, self.count))


def top_blocks(count: int, scorer: Scorer = pooled_keys) -> TopBlocks:
    """The `count` blocks of 64 keys that score highest for each tile of 64 queries; all of them where there are fewer, as at a text's begin."""
    at_least("top_blocks", count)
    return TopBlocks(count, scorer)


@dataclass(frozen=True)
class TopShare(Pattern):
    """A share of the blocks that a tile may see: those that score highest for each tile and head, as `TopBlocks`."""

    share: float
    scorer: Scorer = pooled_keys

    @property
    def name(self) -> str:  # type: ignore[override]
        """As it is written."""
        return f"top_share({self.share}{_by(self.scorer)})"

    def visits(self, sight: Sight) -> Selection:
        """The chosen blocks, each shown whole. Causal: a share of the blocks before the tile, so that a length not yet reached changes nothing."""
        return best_blocks(self, sight, self.scorer, lambda blocks: (blocks * self.share).ceil().long())


def top_share(share: float, scorer: Scorer = pooled_keys) -> TopShare:
    """The blocks that score highest, `share` of those that a tile may see (0 < share <= 1), at least one."""
    if not 0 < share <= 1:
        raise ValueError(f"top_share: a share of {share:g} is not above 0 and at most 1")
    return TopShare(share, scorer)


@torch.no_grad()
def best_blocks(pattern: Pattern, sight: Sight, scorer: Scorer, counts: Callable[[torch.Tensor], torch.Tensor]) -> Selection:
    """The blocks that score highest for each tile and head. counts(how many blocks each tile may see [b, tiles]) -> how many to take."""
    if sight.q is None or sight.k is None:
        raise ValueError(f"{pattern.name} chooses by queries and keys: give both")
    with torch.autocast(sight.q.device.type, enabled=False):
        scores = block_scores(scorer, sight)
    reach = within_reach(sight, scores.shape[-1])
    scores = scores.masked_fill(~reach[:, None] | shown_whole(sight, scores.shape[-1]), float("-inf"))
    count = counts(reach.sum(-1))[:, None]
    best = scores.topk(min(int(count.max()), scores.shape[-1]), -1)
    rank = torch.arange(best.values.shape[-1], device=scores.device)
    none = torch.iinfo(torch.int32).max
    blocks = torch.where((best.values == float("-inf")) | (rank >= count[..., None]), none, best.indices).sort(dim=-1).values
    blocks = torch.where(blocks == none, -1, blocks).int()
    masks, bits = _rows(sight, blocks)
    return Selection(blocks, masks, bits, sight.queries, sight.keys, sight.offset)


def _rows(sight: Sight, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the chosen blocks [b, h, tiles, most] and their bits: all rows of a tile, or those of the document that it chose for."""
    if sight.documents is None or not several(sight.documents):
        return torch.full_like(blocks, FULL), torch.zeros(0, TILE, dtype=torch.int64, device=blocks.device)
    inside = torch.arange(TILE, device=blocks.device)
    rows = (sight.offset // TILE * TILE + torch.arange(blocks.shape[2], device=blocks.device)[:, None] * TILE + inside).clamp(max=sight.keys - 1)
    own = sight.documents[:, rows] == tile_documents(sight)[..., None]
    words, which = torch.unique((own.long() << inside).sum(-1), return_inverse=True)
    masks = torch.where(own.all(-1), FULL, which).int()
    return masks[:, None, :, None].expand(blocks.shape).contiguous(), words[:, None].expand(-1, TILE).contiguous()


def block_scores(scorer: Scorer, sight: Sight, tiles: torch.Tensor | None = None) -> torch.Tensor:
    """Scores of the blocks for each tile, or for some `tiles` [n] [batch, heads, tiles, blocks]: of the keys of the document that it chooses for.

    A scorer knows padding and no documents: to a tile, the keys of other documents are padding.
    """
    queries = leading(sight)
    if sight.documents is None or not several(sight.documents):
        return scorer(queries if tiles is None else queries[:, :, tiles], sight)
    found = queries.new_full((*queries.shape[:3], blocks_of(sight.keys)), float("-inf"), dtype=torch.float32)
    for document, some, own in each_document(tile_documents(sight)):
        alone = dataclasses.replace(sight.of_tiles(some), documents=torch.where(sight.documents == document, 0, -1))
        found[:, :, some] = torch.where(own[:, None, :, None], scorer(queries[:, :, some], alone), found[:, :, some])
    return found if tiles is None else found[:, :, tiles]


def several(documents: torch.Tensor) -> bool:
    """Whether there may be more than one document: a single one is number 0, beside padding."""
    return int(documents.max()) > 0


def each_document(own: torch.Tensor) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Each document among those that tiles choose for [b, tiles]: its number, from its first tile to its last, and which of these choose for it."""
    for document in torch.unique(own).tolist():
        at = (own == document).any(0).nonzero()
        tiles = slice(int(at[0]), int(at[-1]) + 1)
        if document >= 0:
            yield document, tiles, own[:, tiles] == document


def _by(scorer: Scorer) -> str:
    return "" if scorer is pooled_keys else f", {scorer.__name__}"


def leaders(sight: Sight) -> torch.Tensor:
    """Which query each tile chooses by [b, tiles], counted from the first of `q`, negative for one before it, `sight.first`.

    The first of the tile that is known, and both ways the first that is no padding. Causal, padding at the front has nothing before it to be chosen, and a
    decoder keeps the first query, whatever it is.
    """
    tiles, lead = tiles_of(sight.queries, sight.offset), sight.offset % TILE
    rows = (torch.arange(tiles) * TILE - lead)[None]
    if sight.documents is not None and not sight.causal:
        there = sight.documents[:, sight.offset : sight.offset + sight.queries] >= 0
        there = functional.pad(there, (lead, tiles * TILE - lead - sight.queries)).view(len(there), tiles, TILE)
        rows = rows.to(there.device) + there.int().argmax(-1)  # 0 where all is padding
    return rows.clamp(min=0) if sight.first is None else rows


def leading(sight: Sight) -> torch.Tensor:
    """The query that every tile chooses by (`leaders`) [batch, heads, tiles, dim]."""
    assert sight.q is not None
    rows = leaders(sight).to(sight.q.device)[:, None, :, None]
    found = torch.take_along_dim(sight.q, rows.clamp(min=0), 2)
    return found if sight.first is None else torch.where(rows < 0, sight.first[:, :, None], found)


def tile_documents(sight: Sight) -> torch.Tensor:
    """The document that each tile chooses for [b, tiles]: that of the query that it chooses by, negative for padding, which chooses nothing."""
    assert sight.documents is not None
    return torch.take_along_dim(sight.documents, sight.offset + leaders(sight).to(sight.documents.device), 1)


def within_reach(sight: Sight, blocks: int) -> torch.Tensor:
    """Blocks that a tile may choose [b, tiles, blocks]: those with a key of the document that it chooses for; where causal, those that end before it."""
    assert sight.k is not None
    tiles, device = tiles_of(sight.queries, sight.offset), sight.k.device
    found = torch.ones(1, tiles, blocks, dtype=torch.bool, device=device)
    if sight.causal:
        found = found & (torch.arange(blocks, device=device) < (sight.offset // TILE + torch.arange(tiles, device=device))[:, None])
    if sight.documents is None:
        return found
    if not several(sight.documents):
        return found & (tile_documents(sight) >= 0)[..., None] & real(sight.documents, TILE)[:, None, :blocks]
    owned = torch.zeros(len(sight.documents), tiles, blocks, dtype=torch.bool, device=device)
    for document, some, own in each_document(tile_documents(sight)):
        owned[:, some] |= own[..., None] & real(torch.where(sight.documents == document, 0, -1), TILE)[:, None, :blocks]
    return found & owned


def hidden(sight: Sight, blocks: int) -> torch.Tensor:
    """Blocks that may not be chosen [b, h, tiles, blocks]: those not within reach, and those shown already."""
    return ~within_reach(sight, blocks)[:, None] | shown_whole(sight, blocks)


def shown_whole(sight: Sight, blocks: int) -> torch.Tensor:
    """Blocks that are shown already, to all rows of a tile [b, h, tiles, blocks]."""
    assert sight.k is not None
    if sight.shown is None:
        return torch.zeros(1, 1, 1, blocks, dtype=torch.bool, device=sight.k.device)
    whole = torch.where((sight.shown.masks == FULL) & (sight.shown.blocks >= 0) & (sight.shown.blocks < blocks), sight.shown.blocks, blocks).long()
    return torch.zeros(*whole.shape[:3], blocks + 1, dtype=torch.bool, device=sight.k.device).scatter_(3, whole.to(sight.k.device), True)[..., :blocks]


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
        """Blocks of these tokens, visited by every tile; of more than `most` of a document, the first ones."""
        if self.importance.ndim != 2 or self.importance.shape[1] != sight.keys:
            raise ValueError(f"{self.name}: importance must be [batch, keys = {sight.keys}], not {list(self.importance.shape)}")
        if sight.documents is not None and 1 != len(self.importance) != len(sight.documents) != 1:
            raise BadTensor(f"documents {list(sight.documents.shape)} do not fit a pattern for a batch of {len(self.importance)}")
        positions = positions_of(capped((self.importance >= self.threshold)[:, None], self.most, sight))
        return of_tokens(positions, sight, beside(positions, sight))


def apart(sight: Sight) -> Iterator[torch.Tensor]:
    """Keys of each document [b, 1, keys] bool; all keys where nothing is said of documents."""
    if sight.documents is None:
        yield torch.ones(1, 1, sight.keys, dtype=torch.bool)
    elif not several(sight.documents):
        yield (sight.documents >= 0)[:, None]
    else:
        yield from ((sight.documents == document)[:, None] for document in torch.unique(sight.documents).tolist() if document >= 0)


def capped(chosen: torch.Tensor, most: int, sight: Sight) -> torch.Tensor:
    """Of the chosen keys [b, h, keys] bool the first `most` of each document; of padding none."""
    found = torch.zeros_like(chosen)
    for own in apart(sight):
        mine = chosen & own.to(chosen.device)
        found = found | (mine & (mine.cumsum(-1) <= most))
    return found


def positions_of(chosen: torch.Tensor) -> torch.Tensor:
    """Positions of the keys that are chosen, [b, h, keys] bool -> [b, h, extra], rising; -1 where there are fewer."""
    rank = chosen.cumsum(-1) - 1
    extra = max(1, int(rank[..., -1].max()) + 1 if chosen.numel() else 0)
    positions = torch.full((*chosen.shape[:2], extra), -1, dtype=torch.int64, device=chosen.device)
    at = chosen.nonzero(as_tuple=True)
    positions[at[0], at[1], rank[at]] = at[2]
    return positions


def beside(positions: torch.Tensor, sight: Sight) -> torch.Tensor | None:
    """Which tiles may hold the document of each token [b, h, tiles, extra]: others need not visit it; None where all do.

    By the lowest and highest number in the tile: what is between and not there is cut off with the other documents (`select`).
    """
    if sight.documents is None or not several(sight.documents):
        return None
    tiles, lead = tiles_of(sight.queries, sight.offset), sight.offset % TILE
    here = sight.documents[:, sight.offset : sight.offset + sight.queries]
    low, high = (
        reduce(functional.pad(here, (lead, tiles * TILE - lead - sight.queries), value=value).view(len(here), tiles, TILE), -1)[:, None, :, None]
        for reduce, value in ((torch.amin, torch.iinfo(here.dtype).max), (torch.amax, -1))
    )
    of_token = torch.take_along_dim(sight.documents[:, None], positions.clamp(min=0), 2)[:, :, None]
    return (of_token >= low) & (of_token <= high)


def important(importance: torch.Tensor, threshold: float, most: int = TILE) -> Important:
    """Global tokens by importance [batch, keys], such as the entropy of each token's prediction (`entropy`); at most `most` of a document, a budget."""
    at_least("important", most)
    return Important(importance, threshold, most)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of a prediction [..., classes] in nats [...]: high where a model is unsure of what comes next."""
    logs = functional.log_softmax(logits.float(), -1)
    return -(logs.exp() * logs).sum(-1)
