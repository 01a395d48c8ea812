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
from lissome.nn.attention.patterns import select, window
from lissome.nn.attention.sight import Sight

ROUNDS = 7


@dataclass(frozen=True)
class Costs:
    """Microseconds: of a call of the kernel, of a visit of a block by a tile, of a pair by torch's attention with a mask (dim 64, all threads)."""

    call: float
    visit: float
    pair: float

    def pays(self, selection: Selection, batch: int, heads: int) -> bool:
        """Whether visiting blocks is expected to be faster than computing all pairs."""
        share = batch * heads / (selection.blocks.shape[0] * selection.blocks.shape[1])
        return self.call + self.visit * selection.visits * share < self.pair * batch * heads * selection.queries * selection.keys


@functools.lru_cache(maxsize=4)
def costs(threads: int) -> Costs:
    """The costs on this machine with `threads` threads."""
    cache = Cache()
    key = digest("crossover-1", identify().fingerprint, torch.__version__, library().isa, threads)
    stored = cache.get("crossover", key)
    if stored is None:
        stored = _measured()
        cache.put("crossover", key, stored)
    return Costs(**stored)


def _measured() -> dict[str, float]:
    """Two lengths under the kernel give its cost per call and visit, one under torch's attention that of a pair."""
    heads, dim, short, long = 8, 64, 128, 1024
    q, k, v = (torch.randn(1, heads, long, dim) for _ in range(3))
    takes: dict[int, float] = {}
    visits: dict[int, int] = {}
    with torch.no_grad():
        for length in (short, long):
            selection = select(window(TILE), Sight(length, length))
            parts = (q[:, :, :length], k[:, :, :length], v[:, :, :length], selection, 0.125)
            visits[length] = selection.visits * heads
            takes[length] = _median(functools.partial(native.forward, *parts))
        whole = _median(lambda: dense.attend(q, k, v, selection, 0.125))
    visit = max(0.0, takes[long] - takes[short]) / (visits[long] - visits[short])
    return {"call": max(0.0, takes[short] - visit * visits[short]), "visit": visit, "pair": whole / (heads * long * long)}


def _median(call: Callable[[], object]) -> float:
    """Median microseconds of a call, the first not counted."""
    found = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        call()
        found.append(1e6 * (time.perf_counter() - begun))
    return statistics.median(found[1:])
