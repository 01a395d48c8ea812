"""How much of dense attention a selection shows: the share of the softmax that falls on visible keys, exactly, for some of the queries.

The best that blocks can do is what `oracle_blocks` chooses; it computes all pairs, so it is a yardstick and no way to save time.
"""

from __future__ import annotations

import dataclasses

import torch

from lissome.kernels.attention.selection import FULL, TILE, Selection, blocks_of, tiles_of
from lissome.nn.attention.sight import Sight

FLOATS = 1 << 22
"""How many floats of scores are held at once: few enough to stay in a cache."""


def kept(sight: Sight, selection: Selection, rows: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Share of dense attention's weight on keys that `selection` shows [batch, heads, rows].

    rows: [n] int64, indices of queries. Dense means every key, up to the query's own place where `sight.causal`.
    scale: of the scores, 1 / sqrt(dim) by default.
    """
    weights = softmax_rows(sight, rows, scale)
    return (weights * seen(selection, rows)).sum(-1)


def softmax_rows(sight: Sight, rows: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Dense attention weights of some queries [batch, heads, rows, keys], float32; of other documents and padding none, where they are known."""
    assert sight.q is not None and sight.k is not None
    q, k = sight.q[:, :, rows].float(), sight.k.float()
    batch, heads, count, dim = q.shape
    grouped = q.reshape(batch, k.shape[1], -1, dim)
    scores = (grouped @ k.transpose(-1, -2)).view(batch, heads, count, -1) * (dim**-0.5 if scale is None else scale)
    if sight.causal:
        scores = scores.masked_fill(torch.arange(sight.keys, device=q.device) > (sight.offset + rows)[:, None], float("-inf"))
    if sight.documents is None:
        return scores.softmax(-1)
    own = sight.documents[:, sight.offset + rows][:, None, :, None]
    other = (sight.documents[:, None, None, :] != own) | (own < 0)
    return scores.masked_fill(other, float("-inf")).softmax(-1).nan_to_num(0.0)


def left(sight: Sight, rows: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Dense attention weights of some queries on keys that are not shown yet [batch, heads, rows, keys]: what a scorer has to find."""
    weights = softmax_rows(sight, rows, scale)
    return weights if sight.shown is None else weights * ~seen(sight.shown, rows)[..., : sight.keys]


def block_mass(weights: torch.Tensor) -> torch.Tensor:
    """Weights on keys [batch, heads, rows, keys], summed for every block [batch, heads, rows, blocks]."""
    padded = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % TILE))
    return padded.view(*weights.shape[:-1], padded.shape[-1] // TILE, TILE).sum(-1)


def seen(selection: Selection, rows: torch.Tensor) -> torch.Tensor:
    """[b, h, rows, keys] bool: which keys some of the queries see."""
    place = selection.lead + rows
    blocks, masks = (one[:, :, place // TILE] for one in (selection.blocks, selection.masks))
    batch, heads, count, most = blocks.shape
    bits = torch.ones(batch, heads, count, most, TILE, dtype=torch.bool, device=blocks.device)
    if len(selection.bits):
        words = selection.bits[masks.clamp(min=0).long()]
        partly = ((words >> (place % TILE)[None, None, :, None, None]) & 1).bool()
        bits = torch.where((masks == FULL)[..., None], bits, partly)
    bits = bits & (blocks >= 0)[..., None]
    columns = (selection.plain + blocks_of(selection.extra)) * TILE
    index = (blocks.clamp(min=0).long()[..., None] * TILE + torch.arange(TILE, device=blocks.device)).flatten(3)
    found = torch.zeros(batch, heads, count, columns, dtype=torch.int32, device=blocks.device).scatter_add_(3, index, bits.flatten(3).int())
    whole = found[..., : selection.keys]
    if selection.tokens is not None:
        start = selection.plain * TILE
        places = selection.tokens[:, :, None].expand(batch, heads, count, -1)
        whole = whole.scatter_add(3, places, found[..., start : start + selection.extra])
    return whole > 0


@torch.no_grad()
def oracle_blocks(queries: torch.Tensor, sight: Sight) -> torch.Tensor:
    """A block's score is the attention that the tile's queries pay its keys that are not shown yet, summed: what no scorer can beat.

    It computes all pairs, and where attention is causal a tile's choice depends on its later queries too: a yardstick, no way to decode.
    """
    assert sight.q is not None
    batch, heads = queries.shape[:2]
    lead = sight.offset % TILE
    found = queries.new_zeros(batch, heads, tiles_of(sight.queries, sight.offset), blocks_of(sight.keys), dtype=torch.float32)
    step = max(1, FLOATS // (batch * heads * sight.keys))
    for begin in range(0, sight.queries, step):
        rows = torch.arange(begin, min(begin + step, sight.queries), device=queries.device)
        here = block_mass(left(_up_to(sight, int(rows[-1])), rows))
        found[..., : here.shape[-1]].index_add_(2, (lead + rows) // TILE, here)
    return found


def _up_to(sight: Sight, row: int) -> Sight:
    """What the queries up to `row` may see: without the keys of the future, where it is hidden."""
    end = sight.offset + row + 1
    if not sight.causal or end >= sight.keys:
        return sight
    assert sight.q is not None and sight.k is not None
    documents = None if sight.documents is None else sight.documents[:, :end]
    return dataclasses.replace(sight, queries=row + 1, keys=end, q=sight.q[:, :, : row + 1], k=sight.k[:, :, :end], documents=documents)
