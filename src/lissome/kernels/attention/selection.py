"""A selection: which keys every query sees, as blocks of 64 keys that tiles of 64 queries visit, and words of bits for what is visible in part.

Whatever a pattern means, its selection is all that a kernel is told. Single keys that many queries see (globals) are gathered into extra blocks behind
the last, so that eight scattered keys cost eight keys and not eight blocks.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
import torch

from lissome.core.errors import BadInput, BadTensor

TILE = 64
"""Queries a tile, and keys a block: a row of a mask is one 64-bit word, and 192 or more rows (GQA) of 64 columns keep a core busy."""
FULL = -1


@dataclass(frozen=True)
class Selection:
    """Which keys every query sees.

    blocks: [b, h, tiles, most] int32, for each tile of queries the blocks it visits, rising, then -1; b is 1 or the batch, h is 1 or the query heads.
    A block number from ceil(keys / 64) on means 64 of `tokens`. masks: the same shape, FULL where each query of the tile sees each key that is in the
    block, else a row of `bits`.
    bits: [masks, 64] int64: bit r of bits[m, j] says that row r of the tile sees key j of the block.
    tokens: [b, h, extra] int64, positions of keys that are visited by themselves; None without.
    queries, keys: lengths. offset: position of the first query among the keys; row r of tile t stands at 64 * (offset // 64 + t) + r.
    No key is visible to a query twice.
    """

    blocks: torch.Tensor
    masks: torch.Tensor
    bits: torch.Tensor
    queries: int
    keys: int
    offset: int = 0
    tokens: torch.Tensor | None = None

    @property
    def lead(self) -> int:
        """Rows of the first tile that lie before the first query."""
        return self.offset % TILE

    @property
    def tiles(self) -> int:
        """How many tiles the queries lie in."""
        return self.blocks.shape[2]

    @property
    def plain(self) -> int:
        """How many blocks the keys fill; higher numbers are blocks of `tokens`."""
        return blocks_of(self.keys)

    @property
    def extra(self) -> int:
        """How many tokens are visited by themselves."""
        return 0 if self.tokens is None else self.tokens.shape[2]

    @property
    def visits(self) -> int:
        """How many pairs of a tile and a block are visited, over all batches and heads."""
        return int((self.blocks >= 0).sum())

    def pairs(self) -> int:
        """How many pairs of a query row and a key are visible, over all batches and heads; rows of a tile without a query count too."""
        count = torch.where(self.blocks < self.plain, self.keys - self.blocks * TILE, self.extra - (self.blocks - self.plain) * TILE).clamp(max=TILE)
        partly = unpacked(self.bits).sum((-1, -2))[self.masks.clamp(min=0).long()] if len(self.bits) else count
        return int(torch.where(self.blocks >= 0, torch.where(self.masks == FULL, count * TILE, partly), 0).sum())

    def check(self) -> None:
        """Raise BadTensor where the parts do not fit each other: a kernel would read outside of them, or count a key twice. Worked out once."""
        if self._trouble:
            raise BadTensor(f"the selection for {self.queries} queries and {self.keys} keys from {self.offset} on holds together badly: {self._trouble}")

    @functools.cached_property
    def _trouble(self) -> str | None:
        """What does not fit; None where all does."""
        parts = {"blocks": (self.blocks, torch.int32, 4), "masks": (self.masks, torch.int32, 4), "bits": (self.bits, torch.int64, 2)}
        parts |= {} if self.tokens is None else {"tokens": (self.tokens, torch.int64, 3)}
        for name, (part, dtype, dims) in parts.items():
            if part.dtype != dtype or part.ndim != dims:
                return f"{name} are {list(part.shape)} {part.dtype}, not {dims} dimensions of {dtype}"
            if part.device != self.blocks.device:
                return f"blocks are on {self.blocks.device}, {name} on {part.device}"
        shape = list(self.blocks.shape)
        if list(self.masks.shape) != shape or not self.blocks.numel():
            return f"blocks are {shape} and masks {list(self.masks.shape)}, which must be equal and not empty"
        if self.bits.shape[1] != TILE:
            return f"bits are {list(self.bits.shape)}, not rows of {TILE}"
        if min(self.offset, self.queries - 1, self.keys - 1) < 0 or self.tiles != tiles_of(self.queries, self.offset):
            return f"blocks {shape} are for {self.tiles} tiles, and the queries lie in {tiles_of(self.queries, self.offset)}"
        if self.tokens is not None and any(own not in (1, whole) for own, whole in zip(self.tokens.shape[:2], shape[:2], strict=True)):
            return f"tokens are {list(self.tokens.shape)}, for blocks {shape}"
        bounds = [("blocks", self.blocks, -1, self.plain + blocks_of(self.extra)), ("masks", self.masks, FULL, len(self.bits))]
        bounds += [] if self.tokens is None or not self.extra else [("tokens", self.tokens, 0, self.keys)]
        for name, part, least, end in bounds:
            low, high = (int(one) for one in torch.aminmax(part))
            if low < least or high >= end:
                return f"{name} from {low} to {high}, which must be from {least} to {end - 1}"
        before, after = self.blocks[..., :-1], self.blocks[..., 1:]
        return None if bool(((after < 0) | ((before >= 0) & (after > before))).all()) else "the blocks of a tile are not rising with -1 behind them"

    def to(self, device: torch.device | str) -> Selection:
        """The same on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("blocks", "masks", "bits")}
        return dataclasses.replace(self, **moved, tokens=None if self.tokens is None else self.tokens.to(device))

    def dense(self) -> torch.Tensor:
        """[b, h, queries, keys] bool: the whole mask. Raises BadInput where a key is visible to a query twice."""
        batch, heads, tiles, _ = self.blocks.shape
        every = torch.ones(1, TILE, TILE, dtype=torch.bool, device=self.bits.device)  # FULL is the last row
        table = torch.cat([unpacked(self.bits), every])
        at = (self.blocks >= 0).nonzero(as_tuple=True)
        cells = every.new_zeros(batch, heads, tiles, self.plain + blocks_of(self.extra), TILE, TILE)
        cells[(*at[:3], self.blocks[at].long())] = table[self.masks[at].long()]
        found = cells.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, self.lead : self.lead + self.queries]
        whole = found[..., : self.keys]
        if self.tokens is None:
            return whole.contiguous()
        start = self.plain * TILE
        places = self.tokens[:, :, None].expand(batch, heads, self.queries, -1)
        counts = whole.int().scatter_add(3, places, found[..., start : start + self.extra].int())
        if counts.numel() and int(counts.max()) > 1:
            raise BadInput("a key of this selection is visible to a query twice")
        return counts.bool()


def blocks_of(length: int) -> int:
    """How many blocks a length fills, the last one in part."""
    return -(-length // TILE)


def tiles_of(queries: int, offset: int) -> int:
    """How many tiles the queries from `offset` on lie in."""
    return blocks_of(offset % TILE + queries)


def packed(masks: torch.Tensor) -> torch.Tensor:
    """[..., 64 rows, 64 keys] bool as [..., 64 keys] int64 with a bit for each row."""
    powers = torch.ones((), dtype=torch.int64, device=masks.device) << torch.arange(TILE, device=masks.device)
    return (masks.long() * powers[:, None]).sum(-2)


def unpacked(bits: torch.Tensor) -> torch.Tensor:
    """[..., 64 keys] int64 as [..., 64 rows, 64 keys] bool."""
    return ((bits.unsqueeze(-2) >> torch.arange(TILE, device=bits.device)[:, None]) & 1).bool()


def assemble(lengths: tuple[int, int, int], batch: int, heads: int, visits: torch.Tensor, bits: torch.Tensor, tokens: torch.Tensor | None = None) -> Selection:
    """A selection from its visits.

    lengths: queries, keys, offset. visits: [n, 4] int64, (batch, head, tile, block) in rising order; bits: [n, 64] int64, what is visible in each. Visits
    without a visible pair are dropped, equal rows of bits are kept once.
    """
    queries, keys, offset = lengths
    seen = (bits != 0).any(1)
    visits, bits = visits[seen], bits[seen]
    full = (bits == -1).all(1)
    table, rows = _unique(bits[~full])
    masks = torch.full((len(visits),), FULL, dtype=torch.int32)
    masks[~full] = rows
    tiles = tiles_of(queries, offset)
    owner = (visits[:, 0] * heads + visits[:, 1]) * tiles + visits[:, 2]
    counts = torch.bincount(owner, minlength=batch * heads * tiles)
    place = torch.arange(len(visits)) - (counts.cumsum(0) - counts)[owner]
    most = max(1, int(counts.max()) if len(counts) else 0)
    found = torch.full((2, batch * heads * tiles, most), -1, dtype=torch.int32)
    found[0, owner, place] = visits[:, 3].int()
    found[1, owner, place] = masks
    blocks, masks = found.view(2, batch, heads, tiles, most)
    return Selection(blocks, masks, table, queries, keys, offset, tokens)


def of_mask(mask: torch.Tensor, offset: int = 0, tokens: torch.Tensor | None = None) -> Selection:
    """The selection of any mask [b, h, queries, keys] bool; what is visible at `tokens` [b, h, extra] is visited there. At the cost of all pairs."""
    batch, heads, queries, keys = mask.shape
    parts = [mask]
    if tokens is not None:
        parts = [mask.scatter(3, tokens[:, :, None].expand(-1, -1, queries, -1), False), mask.gather(3, tokens[:, :, None].expand(-1, -1, queries, -1))]
    lead, tiles = offset % TILE, tiles_of(queries, offset)
    padded = []
    for part in parts:
        columns = blocks_of(part.shape[3]) * TILE
        whole = torch.zeros(batch, heads, tiles * TILE, columns, dtype=torch.bool)
        whole[:, :, lead : lead + queries, : part.shape[3]] = part
        padded.append(whole)
    cut = torch.cat(padded, 3).view(batch, heads, tiles, TILE, -1, TILE).transpose(3, 4)
    visits = cut.flatten(-2).any(-1).nonzero()
    return assemble((queries, keys, offset), batch, heads, visits, packed(cut[tuple(visits.T)]), tokens)


def _unique(bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Different rows of [n, 64] int64, and for each row which it is (int32)."""
    if not len(bits):
        return bits, torch.zeros(0, dtype=torch.int32)
    rows = np.ascontiguousarray(bits.numpy()).view(np.dtype((np.void, 8 * TILE))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return bits[torch.from_numpy(first)], torch.from_numpy(inverse.astype(np.int32))
