"""Slow and obviously right twins of `tango` and `paired`: the definitions, enumerated. For tests and for readers; n up to about 40."""

from __future__ import annotations

import math

import numpy as np

from lissome.core.statistics.binomial import Floats


def restricted_rate(lost: int, gained: int, n: int, drop: float) -> float:
    """The p01 that maximises the trinomial likelihood on p10 = p01 + drop, by golden-section search instead of the closed form."""

    def log_likelihood(rate: float) -> float:
        cells = ((lost, rate + drop), (gained, rate), (n - lost - gained, 1 - 2 * rate - drop))
        return sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    low, high = max(0.0, -drop), (1 - drop) / 2
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(200):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if log_likelihood(left) >= log_likelihood(right) else (left, high)
    return 0.5 * (low + high)


def score_statistic(lost: int, gained: int, n: int, drop: float) -> float:
    """Tango's statistic, from the restricted rate found by search."""
    variance = n * (2 * restricted_rate(lost, gained, n, drop) + drop - drop * drop)
    excess = lost - gained - n * drop
    return excess / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, excess) if abs(excess) > 1e-9 else 0.0


def outcome_probability(lost: int, gained: int, n: int, lost_rate: Floats, gained_rate: Floats) -> Floats:
    """Trinomial probability of one outcome, for each pair of rates."""
    ways = math.comb(n, lost) * math.comb(n - lost, gained)
    return np.asarray(ways * lost_rate**lost * gained_rate**gained * np.maximum(1 - lost_rate - gained_rate, 0.0) ** (n - lost - gained))


def p_value(bounds: Floats, lost: int, gained: int, margin: float, rates: Floats, gamma: float) -> float:
    """The exact p-value by enumeration.

    bounds [n + 1, n + 1]: the bound that orders outcome (lost, gained). rates: every p01 to try, already within its interval.
    """
    n = len(bounds) - 1
    edge = (1 - margin) / 2
    rates = np.minimum(rates, edge) if rates.min() <= edge else rates[:0]
    total = np.zeros_like(rates)
    for b in range(n + 1):
        for c in range(n + 1 - b):
            if bounds[b, c] <= bounds[lost, gained] + 1e-9:
                total += outcome_probability(b, c, n, np.maximum(rates + margin, 0.0), rates)
    return min(1.0, float(total.max(initial=0.0)) + gamma)
