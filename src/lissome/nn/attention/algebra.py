"""Selections put together: the union of two, and one that a rule cuts down. All is worked out on whole blocks; bits only where a block is seen in part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from lissome.kernels.attention.selection import FULL, TILE, Selection, packed

NOWHERE = 1 << 30
Bits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(positions of queries [n, 64], positions of keys [n, 64]) of n visits -> what is visible [n, 64, 64] bool."""


def union(a: Selection, b: Selection) -> Selection:
    """What either of the two shows. Raises ValueError where both have tokens of their own."""
    if a.tokens is not None and b.tokens is not None:
        raise ValueError("a union of two patterns with tokens of their own: give all tokens to one of them")
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
        joined = torch.full_like(left, FULL)
        joined[~whole] = (which + len(bits)).int()
        bits = torch.cat([bits, bits[pairs[0].long()] | bits[pairs[1].long()]])
        masks = masks.clone()
        masks[..., :-1][again] = joined
        blocks = blocks.clone()
        blocks[..., 1:][again] = NOWHERE
        blocks, order = blocks.sort(dim=-1, stable=True)
        masks = masks.gather(-1, order)
    return trimmed(dataclasses.replace(a, blocks=blocks, masks=masks, bits=bits, tokens=a.tokens if b.tokens is None else b.tokens))


def by_head(parts: list[Selection], owner: list[int]) -> Selection:
    """One selection for all heads: head h as in `parts[owner[h]]`. The parts have no tokens, and one head or all of them."""
    most = max(part.blocks.shape[-1] for part in parts)
    batch, begin = max(part.blocks.shape[0] for part in parts), 0
    blocks = torch.full((batch, len(owner), parts[0].tiles, most), -1, dtype=torch.int32)
    masks = torch.full_like(blocks, FULL)
    for number, part in enumerate(parts):
        heads = [head for head, one in enumerate(owner) if one == number]
        width = part.blocks.shape[-1]
        for whole, own in ((blocks, part.blocks), (masks, torch.where(part.masks >= 0, part.masks + begin, part.masks))):
            whole[:, heads, :, :width] = own if own.shape[1] == 1 else own[:, heads]
        begin += len(part.bits)
    return dataclasses.replace(parts[0], blocks=blocks, masks=masks, bits=torch.cat([part.bits for part in parts]))


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
    blocks = torch.where((bits != 0).any(1), blocks, -1)
    new, which = torch.unique(bits, dim=0, return_inverse=True)
    all_blocks, all_masks = selection.blocks.clone(), selection.masks.clone()
    all_blocks[tuple(ours.T)] = blocks
    all_masks[tuple(ours.T)] = torch.where((bits == -1).all(1), FULL, which.int() + len(selection.bits))
    return trimmed(dataclasses.replace(selection, blocks=all_blocks, masks=all_masks, bits=torch.cat([selection.bits, new])))


def trimmed(selection: Selection) -> Selection:
    """Blocks rising and -1 behind them, no wider than the tile that visits most."""
    blocks, order = torch.where((selection.blocks < 0) | (selection.blocks == NOWHERE), NOWHERE, selection.blocks).sort(dim=-1, stable=True)
    most = max(1, int((blocks < NOWHERE).sum(-1).max()))
    blocks = torch.where(blocks == NOWHERE, -1, blocks)[..., :most].int().contiguous()
    masks = torch.where(blocks < 0, FULL, selection.masks.gather(-1, order)[..., :most]).int().contiguous()
    return dataclasses.replace(selection, blocks=blocks, masks=masks)
