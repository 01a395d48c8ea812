"""What a pattern looks at: lengths and places, queries and keys, and what was worked out of the keys before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from lissome.core.errors import BadTensor
from lissome.kernels.attention.selection import TILE, Selection


@dataclass(frozen=True)
class Span:
    """Runs of positions: first and last of each, both included."""

    first: torch.Tensor
    last: torch.Tensor


@dataclass(frozen=True)
class Sight:
    """What a pattern looks at.

    q: [batch, heads, queries, dim] and k: [batch, kv_heads, keys, dim], None where only places matter. offset: position of the first query among the keys.
    heads: of the queries; those of q, where it is given. causal: whether the future is hidden. first: [batch, heads, dim], the query that stands first in
    the tile of the first one, where `q` begins inside a tile. known: what was worked out of earlier keys, by name (`of_keys`); None where nothing is kept.
    shown: what the patterns to the left of a `|` show already. documents: [1 or batch, keys] int, the document of each key, negative for padding. indexer,
    importance: the layer's own learned scorers. ahead: how many of the last keys are not there yet.

    Raises BadTensor where these do not fit each other.
    """

    queries: int
    keys: int
    offset: int = 0
    heads: int = 1
    causal: bool = True
    q: torch.Tensor | None = None
    k: torch.Tensor | None = None
    first: torch.Tensor | None = None
    known: dict[Hashable, Any] | None = None
    shown: Selection | None = None
    documents: torch.Tensor | None = None
    ahead: int = 0
    indexer: Callable[[torch.Tensor, Sight], torch.Tensor] | None = None
    importance: Callable[[torch.Tensor, Sight], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        queries, keys, offset = self.queries, self.keys, self.offset
        if queries < 1 or keys < 1 or offset < 0 or offset + queries > keys:
            raise BadTensor(f"{queries} queries from {offset} on among {keys} keys", expected="at least one of each, and every query's place among the keys")
        if self.q is not None:
            if self.q.ndim != 4 or self.q.shape[2] != queries or self.heads not in (1, self.q.shape[1]):
                raise BadTensor(f"q {list(self.q.shape)} is not that of {self.heads} heads and {queries} queries", expected="[batch, heads, queries, dim]")
            object.__setattr__(self, "heads", self.q.shape[1])
        if self.k is not None:
            self._check_keys(self.k)
        if self.documents is not None:
            self._check_documents(self.documents)

    def _check_keys(self, k: torch.Tensor) -> None:
        if k.ndim != 4 or k.shape[2] != self.keys:
            raise BadTensor(f"k {list(k.shape)} is not that of {self.keys} keys", expected="[batch, kv_heads, keys, dim]")
        q = self.q
        if q is not None and (q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or not k.shape[1] or q.shape[1] % k.shape[1]):
            raise BadTensor(f"q {list(q.shape)} and k {list(k.shape)} do not fit each other", expected="one batch and dim, heads a multiple of kv_heads")

    def _check_documents(self, documents: torch.Tensor) -> None:
        told = f"documents must be [batch, keys = {self.keys}], not {list(documents.shape)}"
        if documents.ndim != 2 or documents.shape[1] != self.keys:
            raise BadTensor(told)
        if documents.dtype == torch.bool or documents.is_floating_point() or documents.is_complex():
            raise BadTensor(f"documents are numbers of documents, not {documents.dtype}", expected="whole numbers, negative for padding")
        looked = self.q if self.q is not None else self.k
        if looked is not None and documents.shape[0] not in (1, looked.shape[0]):
            raise BadTensor(f"{told}, for a batch of {looked.shape[0]}")

    def of_keys(self, name: Hashable, make: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor], every: int = TILE) -> torch.Tensor:
        """`make(keys, present)`, of keys [batch, kv_heads, n, dim] -> [batch, kv_heads, stretches of `every` keys, ...]; none may depend on other stretches.

        present: [batch, n] bool, which keys are no padding; None where all are. With `known`, a stretch is worked out once, when it is complete, and one that
        is not complete is left out; without, it is the last of the result.
        """
        assert self.k is not None
        k, present = self.k.detach(), None if self.documents is None else self.documents >= 0
        if self.known is None:
            return make(k, present)
        done: torch.Tensor | None = self.known.get(name)
        begin, end = 0 if done is None else done.shape[2] * every, (self.keys - self.ahead) // every * every
        if done is None or end > begin:
            with torch.no_grad():
                new = make(k[:, :, begin:end], None if present is None else present[:, begin:end])
            done = self.known[name] = new if done is None else torch.cat([done, new], 2)
        return done

    def of_tiles(self, tiles: slice) -> Sight:
        """The same for some of the tiles of queries, from one to another. Nothing is kept of it."""
        lead, shown = self.offset % TILE, self.shown
        begin, end = max(0, tiles.start * TILE - lead), min(self.queries, tiles.stop * TILE - lead)
        place = {"queries": end - begin, "offset": self.offset + begin}
        if shown is not None:
            shown = dataclasses.replace(shown, blocks=shown.blocks[:, :, tiles], masks=shown.masks[:, :, tiles], **place)
        q = None if self.q is None else self.q[:, :, begin:end]
        return dataclasses.replace(self, **place, q=q, first=None if tiles.start else self.first, known=None, shown=shown)
