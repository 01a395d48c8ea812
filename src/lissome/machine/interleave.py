"""Timing several things fairly: in turn, round after round, so that whatever disturbs the machine disturbs all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lissome.core.measurement import Measurement

K = TypeVar("K")
Work = Callable[[], Any]


def interleave(works: Mapping[K, Work], seconds: float, least: int = 9, most: int = 101, block_s: float = 0.004) -> dict[K, list[float]]:
    """Seconds per call of each work, one value per round; the i-th values of all works were taken next to each other, so they may be paired.

    Each work is called twice to warm up. A quick work is repeated within its round until that takes `block_s`, after one call that is not timed
    (it pays for waking threads and filling caches). Rounds go on for about `seconds`, at least `least` and at most `most`; on a machine so busy that
    `least` rounds would take three times `seconds`, six do, the fewest that give a 95 % interval.
    """
    repeats = {}
    for key, work in works.items():
        work()
        repeats[key] = max(1, math.ceil(block_s / max(timed(work, 1), 1e-7)))
    taken: dict[K, list[float]] = {key: [] for key in works}
    begun = time.perf_counter()
    while works and len(next(iter(taken.values()))) < most:
        for key, work in works.items():
            if repeats[key] > 1:
                work()
            taken[key].append(timed(work, repeats[key]))
        rounds = len(next(iter(taken.values())))
        # Stop before the round that would go past the time, not after it.
        after_next = (time.perf_counter() - begun) * (rounds + 1) / rounds
        if (rounds >= least and after_next > seconds) or (rounds >= 6 and after_next > 3 * seconds):
            break
    return taken


def rate(name: str, amount: float, seconds: Sequence[float], unit: str, machine: str) -> Measurement:
    """`amount` per second (median with interval): with amount in GFLOP a rate in GFLOP/s."""
    return measured(name, [amount / s for s in seconds], unit, machine)


def speedup(slow: Sequence[float], fast: Sequence[float], machine: str) -> Measurement:
    """How many times faster `fast` is: the median of the ratios of paired rounds of one `interleave`; unit "x"."""
    from lissome.core.statistics import ratio_interval

    return _of(ratio_interval(slow, fast), "speedup", "x", len(fast), machine)


def measured(name: str, values: Sequence[float], unit: str, machine: str) -> Measurement:
    """The median of repetitions with its order-statistic interval; with fewer than six the interval is worth less than 95 %, and says so."""
    from lissome.core.statistics import median_interval

    return _of(median_interval(values), name, unit, len(values), machine)


def _of(interval: tuple[float, float, float], name: str, unit: str, n: int, machine: str) -> Measurement:
    from lissome.core.statistics import achieved_confidence

    return Measurement(name, *interval, unit, n, "measured", machine, confidence=min(0.95, achieved_confidence(n)))


def timed(work: Work, repeats: int = 1) -> float:
    """Seconds per call over `repeats` calls."""
    begun = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - begun) / repeats
