"""Selections put together: the union of two, and one that a rule cuts down. All is worked out on whole blocks; bits only where a block is seen in part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from lissome.kernels.attention.selection import FULL, TILE, Selection, blocks_of, packed

NOWHERE = 1 << 30
Bits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(positions of queries [n, 64], positions of keys [n, 64]) of n visits -> what is visible [n, 64, 64] bool."""


def union(a: Selection, b: Selection) -> Selection:
    """What either of the two shows; the tokens of `b` are numbered behind those of `a`, and shown once where both show them."""
    both = a.tokens is not None and b.tokens is not None
    if both:
        a, b = _beside(a, b)
    shape = np.broadcast_shapes(a.blocks.shape[:3], b.blocks.shape[:3])
    later = torch.where(b.masks >= 0, b.masks + len(a.bits), b.masks)
    blocks, masks = (torch.cat([one.expand(*shape, -1) for one in pair], -1) for pair in ((a.blocks, b.blocks), (a.masks, later)))
    bits = torch.cat([a.bits, b.bits])
    blocks, order = torch.where(blocks < 0, NOWHERE, blocks).sort(dim=-1, stable=True)
    masks = masks.gather(-1, order)
    again = (blocks[..., 1:] == blocks[..., :-1]) & (blocks[..., 1:] < NOWHERE)  # a block stands at most twice, once from each
    if again.any():
        left, right = masks[..., :-1][again], masks[..., 1:][again]
        whole = (left == FULL) | (right == FULL)
        pairs, which = torch.unique(torch.stack([left, right])[:, ~whole], dim=1, return_inverse=True)
        rows = bits[pairs[0].long()] | bits[pairs[1].long()]
        joined = torch.full_like(left, FULL)
        joined[~whole] = torch.where((rows == -1).all(1), FULL, torch.arange(len(rows), device=rows.device) + len(bits)).int()[which]
        bits = torch.cat([bits, rows])
        masks = masks.clone()
        masks[..., :-1][again] = joined
        blocks = blocks.clone()
        blocks[..., 1:][again] = NOWHERE
        blocks, order = blocks.sort(dim=-1, stable=True)
        masks = masks.gather(-1, order)
    found = trimmed(dataclasses.replace(a, blocks=blocks, masks=masks, bits=bits, tokens=a.tokens if b.tokens is None else b.tokens))
    return _tokens_once(found) if both else found


def by_head(parts: list[Selection], owner: list[int]) -> Selection:
    """One selection for all heads: head h as in `parts[owner[h]]`. The parts have one head or all of them."""
    extra = max(part.extra for part in parts)
    parts = [_filled(part, extra) for part in parts]
    most = max(part.blocks.shape[-1] for part in parts)
    batch, begin = max(part.blocks.shape[0] for part in parts), 0
    blocks = torch.full((batch, len(owner), parts[0].tiles, most), -1, dtype=torch.int32, device=parts[0].blocks.device)
    masks = torch.full_like(blocks, FULL)
    tokens = torch.zeros(batch, len(owner), extra, dtype=torch.int64, device=blocks.device) if extra else None
    for number, part in enumerate(parts):
        heads = [head for head, one in enumerate(owner) if one == number]
        width = part.blocks.shape[-1]
        for whole, own in ((blocks, part.blocks), (masks, torch.where(part.masks >= 0, part.masks + begin, part.masks))):
            whole[:, heads, :, :width] = own if own.shape[1] == 1 else own[:, heads]
        if tokens is not None and part.tokens is not None:
            tokens[:, heads] = part.tokens if part.tokens.shape[1] == 1 else part.tokens[:, heads]
        begin += len(part.bits)
    return dataclasses.replace(parts[0], blocks=blocks, masks=masks, bits=torch.cat([part.bits for part in parts]), tokens=tokens)


def _filled(selection: Selection, extra: int) -> Selection:
    """The same with room for `extra` tokens: position 0 stands where there is none, and no query sees it there."""
    if selection.tokens is None or selection.extra == extra:
        return selection
    last = (selection.blocks == selection.plain + selection.extra // TILE) & (selection.masks == FULL)  # the block that is filled up
    row = -(torch.arange(TILE, device=selection.bits.device) < selection.extra % TILE).long()
    masks = torch.where(last, len(selection.bits), selection.masks)
    tokens = torch.nn.functional.pad(selection.tokens, (0, extra - selection.extra))
    return dataclasses.replace(selection, masks=masks, bits=torch.cat([selection.bits, row[None]]), tokens=tokens)


def _beside(a: Selection, b: Selection) -> tuple[Selection, Selection]:
    """The two with the tokens of both: those of `a` in their blocks, filled up, and those of `b` in the blocks behind."""
    a = _filled(a, blocks_of(a.extra) * TILE)
    assert a.tokens is not None and b.tokens is not None
    shape = np.broadcast_shapes(a.tokens.shape[:2], b.tokens.shape[:2])
    tokens = torch.cat([one.expand(*shape, -1) for one in (a.tokens, b.tokens)], -1)
    behind = torch.where(b.blocks >= b.plain, b.blocks + blocks_of(a.extra), b.blocks)
    return dataclasses.replace(a, tokens=tokens), dataclasses.replace(b, blocks=behind, tokens=tokens)


def _tokens_once(selection: Selection) -> Selection:
    """The same with each token visible to a tile in one place alone; at most two of its places are visible before."""
    ours = (selection.blocks >= selection.plain).nonzero()
    if not len(ours):
        return selection
    _, keys = places(selection, ours, selection.blocks[tuple(ours.T)])  # [n, 64]
    old = selection.masks[tuple(ours.T)]
    bits = torch.where((old >= 0)[:, None], selection.bits[old.clamp(min=0).long()], -1)
    bits = torch.where(keys >= 0, bits, 0)
    tile = (ours[:, 0] * selection.blocks.shape[1] + ours[:, 1]) * selection.tiles + ours[:, 2]
    seen = (bits != 0).flatten().nonzero()[:, 0]
    which, order = (tile[:, None] * selection.keys + keys).flatten()[seen].sort(stable=True)
    twice = which[1:] == which[:-1]
    if not bool(twice.any()):
        return selection
    first, second = seen[order[:-1][twice]], seen[order[1:][twice]]
    flat = bits.view(-1)
    flat[first] |= flat[second]
    flat[second] = 0
    return _rewritten(selection, ours, bits)


def _rewritten(selection: Selection, at: torch.Tensor, bits: torch.Tensor) -> Selection:
    """Other bits [n, 64] for the visits `at` [n, 4] (b, h, tile, place); a visit that shows nothing more is dropped."""
    new, which = torch.unique(bits, dim=0, return_inverse=True)
    where = tuple(at.T)
    blocks, masks = selection.blocks.clone(), selection.masks.clone()
    blocks[where] = torch.where((bits != 0).any(1), blocks[where], -1)
    masks[where] = torch.where((bits == -1).all(1), FULL, which.int() + len(selection.bits))
    return trimmed(dataclasses.replace(selection, blocks=blocks, masks=masks, bits=torch.cat([selection.bits, new])))


def past(selection: Selection) -> Selection:
    """Without the future: a tile sees the blocks before its own whole and its own up to the diagonal. The selection has no tokens.

    The same as `cut` by the causal rule, without asking of every pair of the blocks on the diagonal: queries and keys of a block are counted alike, so all
    of them are cut by one triangle.
    """
    tile = (selection.offset // TILE + torch.arange(selection.tiles, device=selection.blocks.device))[:, None]
    blocks = torch.where(selection.blocks > tile, -1, selection.blocks)
    diagonal = blocks == tile
    if not bool(diagonal.any()):
        return trimmed(dataclasses.replace(selection, blocks=blocks))
    used, which = torch.unique(selection.masks[diagonal], return_inverse=True)
    before = torch.where((used >= 0)[:, None], selection.bits[used.clamp(min=0).long()] if len(selection.bits) else -1, -1)
    bits = before & packed(torch.ones(TILE, TILE, dtype=torch.bool, device=blocks.device).tril())
    masks = selection.masks.clone()
    masks[diagonal] = (which + len(selection.bits)).int()
    blocks[diagonal] = torch.where((bits != 0).any(1)[which], blocks[diagonal], -1)
    return trimmed(dataclasses.replace(selection, blocks=blocks, masks=masks, bits=torch.cat([selection.bits, bits])))


def without_padding(selection: Selection, there: torch.Tensor) -> Selection:
    """What a selection shows where neither query nor key is padding. there: [batch, keys] bool. The selection has no tokens.

    The same as `cut` by documents of one number, without asking of every pair: what is there in a block is one word of bits, for its queries and its keys.
    """
    batch, plain = there.shape[0], selection.plain
    bits = torch.nn.functional.pad(there, (0, plain * TILE - selection.keys)).view(batch, plain, TILE)
    words = (bits.long() << torch.arange(TILE, device=there.device)).sum(-1)  # [batch, plain]: bit j says that key j of the block is there
    blocks = selection.blocks.expand(batch, -1, -1, -1)
    owner = torch.arange(batch, device=there.device)[:, None, None, None]
    tile = (selection.offset // TILE + torch.arange(selection.tiles, device=there.device)).clamp(max=plain - 1)
    of_keys, of_queries = words[owner, blocks.clamp(min=0).long()], words[:, tile][:, None, :, None].expand_as(blocks)
    blocks = torch.where((of_keys == 0) | (of_queries == 0), -1, blocks)
    partly = (blocks >= 0) & ((of_keys != -1) | (of_queries != -1))
    masks = selection.masks.expand_as(blocks).clone()
    if not bool(partly.any()):
        return trimmed(dataclasses.replace(selection, blocks=blocks, masks=masks))
    kinds, which = torch.unique(torch.stack([masks[partly].long(), of_keys[partly], of_queries[partly]], 1), dim=0, return_inverse=True)
    old = kinds[:, :1]
    before = torch.where(old >= 0, selection.bits[old[:, 0].clamp(min=0)] if len(selection.bits) else -1, -1)
    columns = (kinds[:, 1:2] >> torch.arange(TILE, device=there.device)) & 1
    new = before & torch.where(columns > 0, kinds[:, 2:], 0)
    blocks[partly] = torch.where((new != 0).any(1)[which], blocks[partly], -1)
    masks[partly] = (which + len(selection.bits)).int()
    return trimmed(dataclasses.replace(selection, blocks=blocks, masks=masks, bits=torch.cat([selection.bits, new])))


def cut(selection: Selection, some: torch.Tensor, every: torch.Tensor, sees: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> Selection:
    """What a selection shows and a rule allows.

    some, every: [b, h, tiles, most] bool, whether the rule allows any and all pairs of each visit; sees: (batch of each visit [n], positions of queries
    [n, 64, 1], of keys [n, 1, 64]) -> bool [n, 64, 64], asked where it allows part of them.
    """
    shape = np.broadcast_shapes(selection.blocks.shape, some.shape)
    blocks = torch.where(some, selection.blocks, -1).expand(shape).clone()
    masks = selection.masks.expand(shape).clone()
    partly = (blocks >= 0) & ~every.expand(shape)
    at = partly.nonzero()
    if not len(at):
        return trimmed(dataclasses.replace(selection, blocks=blocks, masks=masks))
    queries, keys = places(selection, at, blocks[partly])
    allowed = packed(sees(at[:, 0], queries[:, :, None], keys[:, None, :]))
    old = masks[partly].long()
    before = torch.where((old >= 0)[:, None], selection.bits[old.clamp(min=0)] if len(selection.bits) else allowed, -1)
    bits = allowed & before
    blocks[partly] = torch.where((bits != 0).any(1), blocks[partly], -1)
    new, which = torch.unique(bits, dim=0, return_inverse=True)
    masks[partly] = torch.where((bits == -1).all(1), FULL, which.int() + len(selection.bits))
    return trimmed(dataclasses.replace(selection, blocks=blocks, masks=masks, bits=torch.cat([selection.bits, new])))


def places(selection: Selection, at: torch.Tensor, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the queries and of the keys of visits [n, 64] each; -1 for a key that is not there. at: [n, 4] (b, h, tile, place)."""
    inside = torch.arange(TILE, device=blocks.device)
    queries = (selection.offset // TILE + at[:, 2])[:, None] * TILE + inside
    own = blocks < selection.plain
    keys = blocks[:, None].long() * TILE + inside
    keys = torch.where(keys < selection.keys, keys, -1)
    if selection.tokens is not None and not bool(own.all()):
        index = (blocks[:, None].long() - selection.plain) * TILE + inside
        batch, heads, _ = selection.tokens.shape
        mine = selection.tokens[at[:, 0].clamp(max=batch - 1), at[:, 1].clamp(max=heads - 1)]  # one for all, or as many as the selection has
        found = mine.gather(1, index.clamp(0, selection.extra - 1))
        keys = torch.where(own[:, None], keys, torch.where(index < selection.extra, found, -1))
    return queries, keys


def once(selection: Selection) -> Selection:
    """The same with nothing visible twice: a token that a query also sees in its block is seen there."""
    if selection.tokens is None:
        return selection
    ours = (selection.blocks >= selection.plain).nonzero()
    if not len(ours):
        return dataclasses.replace(selection, tokens=None)
    blocks = selection.blocks[tuple(ours.T)]
    _, keys = places(selection, ours, blocks)  # [n, 64]
    beside = selection.blocks[ours[:, 0], ours[:, 1], ours[:, 2]]  # all blocks of the same tile [n, most]
    masks = selection.masks[ours[:, 0], ours[:, 1], ours[:, 2]]
    same = (beside[:, :, None] == (keys // TILE)[:, None, :]) & (keys >= 0)[:, None, :]  # [n, most, 64]
    there, where = same.any(1), same.int().argmax(1)
    mask = masks.gather(1, where)
    seen = torch.where(mask == FULL, -1, selection.bits[mask.clamp(min=0).long(), keys.clamp(min=0) % TILE] if len(selection.bits) else -1)
    old = selection.masks[tuple(ours.T)]
    before = torch.where((old >= 0)[:, None], selection.bits[old.clamp(min=0).long()] if len(selection.bits) else torch.zeros_like(seen), -1)
    bits = before & ~torch.where(there, seen, 0) & -(keys >= 0).long()
    return _rewritten(selection, ours, bits)


def trimmed(selection: Selection) -> Selection:
    """Blocks rising and -1 behind them, no wider than the tile that visits most."""
    blocks, order = torch.where((selection.blocks < 0) | (selection.blocks == NOWHERE), NOWHERE, selection.blocks).sort(dim=-1, stable=True)
    most = max(1, int((blocks < NOWHERE).sum(-1).max()))
    blocks = torch.where(blocks == NOWHERE, -1, blocks)[..., :most].int().contiguous()
    masks = torch.where(blocks < 0, FULL, selection.masks.gather(-1, order)[..., :most]).int().contiguous()
    return dataclasses.replace(selection, blocks=blocks, masks=masks)
