"""Paired bootstrap of a figure that is made from sums over examples and is no mean of scores, such as corpus BLEU.

Examples are drawn with replacement, the same for both systems (Koehn, EMNLP 2004), and the interval runs between quantiles of the difference. It believes
that the sample holds what can happen: for a figure that a few bad examples can ruin, `bootstrap_drop` is the honest one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lissome.core.errors import BadInput
from lissome.core.statistics.binomial import Floats
from lissome.core.statistics.intervals import Interval

DRAWS = 2000


def paired_difference(
    first: Floats, second: Floats, figure: Callable[[Floats], float], confidence: float = 0.95, seed: int = 0, draws: int = DRAWS
) -> Interval:
    """figure(sums of first) - figure(sums of second) with its interval; first, second: what each example [n, k] adds, in the same order.

    Same seed, same result. Raises BadInput for examples that do not pair up, and for fewer than two.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise BadInput(f"{list(a.shape)} of one and {list(b.shape)} of the other do not pair up", expected="[examples, sums] of both, alike")
    if len(a) < 2:
        raise BadInput(f"{len(a)} examples cannot be drawn from", expected="at least 2")
    generator = np.random.default_rng(seed)
    found = np.empty(draws)
    for i in range(draws):
        times = np.bincount(generator.integers(0, len(a), len(a)), minlength=len(a)).astype(np.float64)
        found[i] = figure(times @ a) - figure(times @ b)
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(figure(a.sum(0)) - figure(b.sum(0)), float(low), float(high))
