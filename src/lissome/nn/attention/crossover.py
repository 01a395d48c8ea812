"""Below which length visiting blocks does not pay on this machine: measured once, kept in lissome's cache."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lissome.core.cache import Cache, digest
from lissome.kernels.attention import dense, native
from lissome.kernels.attention.selection import TILE, Selection
from lissome.kernels.library import library
from lissome.machine.identity import identify
from lissome.nn.attention.patterns import everything, select, window
from lissome.nn.attention.sight import Sight

ROUNDS = 7
FEW = 16
"""Queries of a call that counts as a decoder's step: reading the keys is what it costs, not multiplying them."""


@dataclass(frozen=True)
class Costs:
    """Microseconds: of a call of the kernel, of a visit of a block by a tile, of a pair by torch's attention with a mask (dim 64)."""

    call: float
    visit: float
    pair: float

    def pays(self, selection: Selection, batch: int, heads: int) -> bool:
        """Whether visiting blocks is expected to be faster than computing all pairs."""
        share = batch * heads / (selection.blocks.shape[0] * selection.blocks.shape[1])
        return self.call + self.visit * selection.visits * share < self.pair * batch * heads * selection.queries * selection.keys


@functools.lru_cache(maxsize=8)
def costs(threads: int, dtype: torch.dtype = torch.float32, few: bool = False) -> Costs:
    """The costs on this machine with `threads` threads, of tensors of `dtype`; few: of a decoder's step, not of a prompt."""
    cache = Cache()
    key = digest("crossover-2", identify().fingerprint, torch.__version__, library().isa, threads, str(dtype), few)
    stored = cache.get("crossover", key)
    if stored is None:
        stored = _measured(dtype, few)
        cache.put("crossover", key, stored)
    return Costs(**stored)


def _measured(dtype: torch.dtype, few: bool) -> dict[str, float]:
    """Two lengths under the kernel give its cost per call and visit, the longer one under torch's attention that of a pair."""
    heads, dim, scale = 8, 64, 0.125
    short, long = (512, 4096) if few else (128, 1024)
    q, k, v = (torch.randn(1, heads, long, dim).to(dtype) for _ in range(3))
    takes: dict[int, float] = {}
    visits: dict[int, int] = {}
    with torch.no_grad():
        for length in (short, long):
            queries = 1 if few else length
            selection = select(everything() if few else window(TILE), Sight(queries, length, length - queries))
            parts = (q[:, :, :queries], k[:, :, :length], v[:, :, :length], selection, scale)
            visits[length] = selection.visits * heads
            takes[length] = _median(functools.partial(native.forward, *parts))
        whole = _median(functools.partial(dense.attend, *parts))
    visit = max(0.0, takes[long] - takes[short]) / (visits[long] - visits[short])
    return {"call": max(0.0, takes[short] - visit * visits[short]), "visit": visit, "pair": whole / (heads * queries * long)}


def _median(call: Callable[[], object]) -> float:
    """Median microseconds of a call, the first not counted."""
    found = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        call()
        found.append(1e6 * (time.perf_counter() - begun))
    return statistics.median(found[1:])
