"""Torch alone, a few tiles of queries at a time: gathers the blocks they visit. Memory is linear in the length; every device, every float type.

Backward recomputes the weights (FlashAttention, Dao et al. 2022, algorithm 4), so that only inputs, output and log-sums are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from lissome.kernels.attention.selection import FULL, TILE, Selection, unpacked

FLOATS = 1 << 23
"""How many floats of gathered keys and scores are held at once."""


@dataclass(frozen=True)
class _Chunk:
    """Some tiles. tiles: their numbers [c]; rows: which keys they visit [b, h, c, width]; visible [b, h, c, 64, width] bool."""

    tiles: torch.Tensor
    rows: torch.Tensor
    visible: torch.Tensor


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [batch, heads, queries, value_dim] and log of the sum of exp(scores) [batch, heads, queries], -inf where a query sees no key.

    q [batch, heads, queries, dim], k [batch, kv_heads, keys, dim], v [batch, kv_heads, keys, value_dim].
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    tiled, shared = _tiled(q, selection), selection.blocks.shape[1] == 1
    out = tiled.new_zeros(*tiled.shape[:4], v.shape[-1])
    lse = tiled.new_full(tiled.shape[:4], float("-inf"), dtype=wide)
    for chunk in _chunks(selection, tiled.shape, k.shape[1]):
        queries, visible, (keys, values) = _gathered(tiled, chunk, shared, k.shape[1], k, v, wide)
        scores = ((queries @ keys.transpose(-1, -2)) * scale).masked_fill(~visible, float("-inf"))
        most = scores.amax(-1, keepdim=True)
        weights = torch.exp(scores - torch.where(most == float("-inf"), 0.0, most))
        total = weights.sum(-1, keepdim=True)
        found = (weights @ values) / torch.where(total == 0, 1.0, total)
        heads = (*tiled.shape[:2], len(chunk.tiles), TILE)
        out[:, :, chunk.tiles] = _unfolded(found, heads).to(out.dtype)
        lse[:, :, chunk.tiles] = _unfolded(most + torch.log(total), heads)[..., 0]
    return _flat(out, selection), _flat(lse, selection)


def backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, selection: Selection, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v, in at least float32."""
    wide = lse.dtype
    tiled, tiled_grad, shared = _tiled(q, selection), _tiled(grad, selection), selection.blocks.shape[1] == 1
    delta = _tiled((grad.to(wide) * out.to(wide)).sum(-1, keepdim=True), selection)
    sums = _tiled(torch.where(lse == float("-inf"), float("inf"), lse)[..., None], selection, float("inf"))
    dq = torch.zeros(tiled.shape, dtype=wide, device=q.device)
    dk, dv = (torch.zeros(one.shape, dtype=wide, device=q.device) for one in (k, v))
    for chunk in _chunks(selection, tiled.shape, k.shape[1]):
        queries, visible, (keys, values) = _gathered(tiled, chunk, shared, k.shape[1], k, v, wide)
        given, apart, total = (_folded(one[:, :, chunk.tiles], shared, k.shape[1]).to(wide) for one in (tiled_grad, delta, sums))
        weights = torch.exp(((queries @ keys.transpose(-1, -2)) * scale).masked_fill(~visible, float("-inf")) - total)
        scores = weights * (given @ values.transpose(-1, -2) - apart) * scale
        dq[:, :, chunk.tiles] = _unfolded(scores @ keys, (*tiled.shape[:2], len(chunk.tiles), TILE))
        _scatter(dk, scores.transpose(-1, -2) @ queries, chunk.rows)
        _scatter(dv, weights.transpose(-1, -2) @ given, chunk.rows)
    return _flat(dq, selection), dk, dv


def _chunks(selection: Selection, tiled: torch.Size, kv_heads: int) -> Iterator[_Chunk]:
    """The tiles in groups of about equal width, each as many as fit in FLOATS; tiles that visit nothing are left out."""
    counts = (selection.blocks >= 0).sum(-1).amax((0, 1))
    order = torch.argsort(counts, stable=True)
    order = order[counts[order] > 0]
    heads = kv_heads if selection.blocks.shape[1] == 1 else tiled[1]
    while len(order):
        widest = int(counts[order[-1]])
        size = max(1, FLOATS // (tiled[0] * heads * widest * TILE * max(tiled[-1], TILE * tiled[1] // heads)))
        yield _chunk(selection, order[-size:], widest)
        order = order[:-size]


def _chunk(selection: Selection, tiles: torch.Tensor, widest: int) -> _Chunk:
    blocks, masks = selection.blocks[:, :, tiles, :widest].long(), selection.masks[:, :, tiles, :widest].long()
    inside = torch.arange(TILE, device=blocks.device)
    rows = blocks[..., None] * TILE + inside
    there = (blocks >= 0)[..., None] & (rows < selection.keys)
    rows = rows.clamp(0, selection.keys - 1)
    if selection.tokens is not None:
        places = (blocks - selection.plain)[..., None] * TILE + inside
        there = there | ((places >= 0) & (places < selection.extra))
        places = places.clamp(0, selection.extra - 1)
        shape = (*places.shape[:2], places.shape[2] * places.shape[3] * TILE)
        tokens = selection.tokens.expand(*places.shape[:2], -1).gather(2, places.reshape(shape)).view(places.shape)
        rows = torch.where((blocks >= selection.plain)[..., None], tokens, rows)
    visible = (masks == FULL)[..., None, None].expand(*masks.shape, TILE, TILE)
    if len(selection.bits):
        visible = visible | unpacked(torch.where((masks >= 0)[..., None], selection.bits[masks.clamp(min=0)], 0))
    visible = visible & there[..., None, :]
    return _Chunk(tiles, rows.flatten(3), visible.permute(0, 1, 2, 4, 3, 5).flatten(4))


def _gathered(
    tiled: torch.Tensor, chunk: _Chunk, shared: bool, kv_heads: int, k: torch.Tensor, v: torch.Tensor, wide: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """The chunk's queries, mask, keys and values [batch, heads, c, rows, ...]; where all heads share a selection, queries of one key head in one matrix."""
    queries = _folded(tiled[:, :, chunk.tiles], shared, kv_heads).to(wide)
    batch, heads = queries.shape[:2]
    places = _places(chunk.rows, batch, heads, kv_heads, k.shape[2])
    taken = [one.flatten(0, 2)[places.flatten()].view(*places.shape, one.shape[-1]).to(wide) for one in (k, v)]
    visible = chunk.visible.repeat(1, 1, 1, queries.shape[3] // TILE, 1)
    return queries, visible, taken


def _places(rows: torch.Tensor, batch: int, heads: int, kv_heads: int, length: int) -> torch.Tensor:
    """Rows of [batch * kv_heads * length, ...] that are visited [batch, heads, c, width]."""
    rows = rows.expand(batch, heads, -1, -1)
    owner = torch.arange(heads, device=rows.device) // (heads // kv_heads)
    base = (torch.arange(batch, device=rows.device)[:, None] * kv_heads + owner) * length
    return rows + base[..., None, None]


def _scatter(into: torch.Tensor, found: torch.Tensor, rows: torch.Tensor) -> None:
    """Add [batch, heads, c, width, dim] to the rows of `into` [batch, kv_heads, length, dim] they come from."""
    places = _places(rows, found.shape[0], found.shape[1], into.shape[1], into.shape[2])
    into.flatten(0, 2).index_add_(0, places.flatten(), found.flatten(0, 3))


def _folded(rows: torch.Tensor, shared: bool, kv_heads: int) -> torch.Tensor:
    """[batch, heads, c, 64, d] as [batch, kv_heads, c, group * 64, d] where the heads of a group visit the same keys."""
    if not shared:
        return rows
    return rows.reshape(rows.shape[0], kv_heads, -1, *rows.shape[2:]).transpose(2, 3).flatten(3, 4)


def _unfolded(rows: torch.Tensor, heads: tuple[int, ...]) -> torch.Tensor:
    """The same back, `heads` = (batch, heads, c, 64)."""
    if rows.shape[1] == heads[1]:
        return rows
    return rows.reshape(*rows.shape[:3], -1, TILE, rows.shape[-1]).transpose(2, 3).flatten(1, 2)


def _tiled(rows: torch.Tensor, selection: Selection, fill: float = 0.0) -> torch.Tensor:
    """[batch, heads, queries, d] as [batch, heads, tiles, 64, d], filled up before and behind."""
    behind = selection.tiles * TILE - selection.lead - selection.queries
    padded = functional.pad(rows, (0, 0, selection.lead, behind), value=fill)
    return padded.reshape(*rows.shape[:2], selection.tiles, TILE, rows.shape[-1])


def _flat(tiled: torch.Tensor, selection: Selection) -> torch.Tensor:
    """The queries out of their tiles."""
    return tiled.flatten(2, 3)[:, :, selection.lead : selection.lead + selection.queries]
