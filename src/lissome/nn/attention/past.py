"""What a layer keeps between calls, so that a decoder chooses token by token as it would in one go, and reads only the keys that it chose."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch

from lissome.kernels.attention.selection import TILE
from lissome.nn.attention.sight import Sight

Lead = tuple[torch.Tensor, torch.Tensor]
"""The first query of a tile [rows, heads, dim], and the key of its place [rows, kv_heads, dim]."""


class Past:
    """What scorers worked out of the keys, such as the mean key of every complete block, and the first queries of the last two tiles.

    A call that does not go on where the last one ended works all out again from the keys. It finds the first query of its tile by the key of that place: both
    come of the same hidden state, so rows whose keys are equal have equal queries, wherever they stood before. A tile whose first query is not found is
    chosen for by the query that comes next.
    """

    def __init__(self) -> None:
        self.length = 0
        self.shape: tuple[int, ...] = ()
        self.known: dict[Hashable, Any] = {}
        self.leads: dict[int, Lead] = {}
        self.keys: weakref.ref[torch.Tensor] | None = None

    def look(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        causal: bool = True,
        indexer: Callable[[torch.Tensor, Sight], torch.Tensor] | None = None,
        importance: Callable[[torch.Tensor, Sight], torch.Tensor] | None = None,
        goes_on: bool = True,
    ) -> Sight:
        """What a pattern looks at when `q` [batch, heads, queries, dim] stands at the end of `k` [batch, kv_heads, keys, dim]; remembered for the next call.

        goes_on: whether `k` begins with the keys of the call before, should their number fit.
        """
        queries, keys = q.shape[2], k.shape[2]
        offset = keys - queries
        if not causal:
            return Sight(queries, keys, offset, q.shape[1], False, q, k, indexer=indexer, importance=importance)
        tile, inside = divmod(offset, TILE)
        if not goes_on or offset != self.length or self.shape != k.shape[:2]:
            lead = _matched(self.leads[tile], k[:, :, tile * TILE]) if inside and tile in self.leads else None
            self.known, self.leads = {}, {} if lead is None else {tile: lead}
        first = self.leads[tile][0] if inside and tile in self.leads else None
        sight = Sight(queries, keys, offset, q.shape[1], True, q, k, first, self.known, indexer=indexer, importance=importance)
        self._lead(q.detach(), k.detach(), offset)
        self.length, self.shape, self.keys = keys, tuple(k.shape[:2]), weakref.ref(k)
        return sight

    def borrow(self, others: Iterable[Past]) -> None:
        """Know the first queries that others know: a copy of a cache goes on where the cache stood."""
        found = [one.leads for one in others]
        for tile in {tile for leads in found for tile in leads}:
            firsts, keys = zip(*(leads[tile] for leads in found if tile in leads), strict=True)
            self.leads[tile] = torch.cat(firsts), torch.cat(keys)

    def _lead(self, q: torch.Tensor, k: torch.Tensor, offset: int) -> None:
        """Note the first queries of the last two tiles: rejected drafts may lead back over the edge of one."""
        last = (k.shape[2] - 1) // TILE
        for tile in (last - 1, last):
            if tile * TILE >= offset:
                self.leads[tile] = q[:, :, tile * TILE - offset].clone(), k[:, :, tile * TILE].clone()
        self.leads = {tile: lead for tile, lead in self.leads.items() if tile >= last - 1}


def _matched(lead: Lead, keys: torch.Tensor) -> Lead | None:
    """The first query of each row by the key of its place, `keys` [batch, kv_heads, dim]; None where a row has none."""
    first, place = lead
    if place.shape[1:] != keys.shape[1:]:
        return None
    equal = (keys[:, None] == place[None]).flatten(2).all(-1)
    if not bool(equal.any(1).all()):
        return None
    return first[equal.int().argmax(1)], keys.detach().clone()


_PASTS: weakref.WeakKeyDictionary[torch.nn.Module, weakref.WeakKeyDictionary[Any, Past]] = weakref.WeakKeyDictionary()
"""Of every attention module, what belongs to each of the caches that it has seen."""
_FIRST: weakref.WeakKeyDictionary[torch.nn.Module, Past] = weakref.WeakKeyDictionary()
"""What belongs to the cache of a module's very first call, which is not known then."""
_NEXT: weakref.WeakKeyDictionary[torch.nn.Module, tuple[Past, bool]] = weakref.WeakKeyDictionary()
"""What `past_of` gives the call that is on its way."""


def past_of(module: torch.nn.Module) -> tuple[Past, bool]:
    """What the module keeps for the cache of this call, and whether that cache came with the very keys that the module saw last.

    Whatever changes a cache, as a reordering for beams or a crop after rejected drafts, puts other tensors in its place.
    """
    if _find not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_find, with_kwargs=True)
        _FIRST[module] = Past()
        return _FIRST[module], False
    return _NEXT.pop(module, None) or (Past(), False)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _find(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before an attention module adds its new keys to the cache, of which attention functions are not told."""
    _NEXT.pop(module, None)
    cache = next((one for one in (*kwargs.values(), *args) if hasattr(one, "get_seq_length")), None)
    if cache is None:
        return
    cache = getattr(cache, "self_attention_cache", cache)
    layers, at = getattr(cache, "layers", ()), getattr(module, "layer_idx", None)
    held = getattr(layers[at], "keys", None) if isinstance(at, int) and at < len(layers) else None
    pasts = _PASTS.setdefault(module, weakref.WeakKeyDictionary())
    if cache not in pasts:
        first = _FIRST.get(module)
        own = first is not None and _saw(first, held)
        past = _FIRST.pop(module) if own else Past()
        if held is not None and not own:
            past.borrow([*pasts.values(), *([] if first is None else [first])])
        pasts[cache] = past
    _NEXT[module] = pasts[cache], _saw(pasts[cache], held)


def _saw(past: Past, held: torch.Tensor | None) -> bool:
    return held is not None and past.keys is not None and past.keys() is held
