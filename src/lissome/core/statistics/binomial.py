"""The binomial distribution in plain numpy: log pmf, cumulative probability, Clopper-Pearson bounds.

Sums run over a window of the distribution, so they cost O(sqrt(n)) and keep their relative accuracy (1e-9 or better up to n = 10^6) far into the tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TAIL = 1e-14
"""Probability that the windows may leave out on each side."""

_SMALL = np.array([math.lgamma(k + 1) for k in range(16)])


def log_factorial(k: ArrayLike) -> Floats:
    """log(k!) elementwise, k >= 0. A table below 16, above it Stirling's series, whose next term is below 1e-12."""
    k = np.asarray(k, dtype=np.int64)
    large = np.maximum(k, 16).astype(np.float64)
    inverse = 1.0 / large
    series = inverse * (1 / 12 - inverse**2 * (1 / 360 - inverse**2 * (1 / 1260 - inverse**2 / 1680)))
    stirling = (large + 0.5) * np.log(large) - large + 0.5 * math.log(2 * math.pi) + series
    return np.asarray(np.where(k < 16, _SMALL[np.minimum(k, 15)], stirling))


def log_choose(n: ArrayLike, k: ArrayLike) -> Floats:
    """Log of "n choose k" elementwise; -inf where k < 0 or k > n."""
    n, k = np.broadcast_arrays(np.asarray(n, dtype=np.int64), np.asarray(k, dtype=np.int64))
    inside = np.clip(k, 0, n)
    return np.where((k < 0) | (k > n), -np.inf, log_factorial(n) - log_factorial(inside) - log_factorial(n - inside))


def safe_log(p: ArrayLike) -> Floats:
    """log(p) with a huge negative number for p <= 0, so that 0 * log(0) is 0 and exp(k * log(0)) is 0 for k > 0."""
    p = np.asarray(p, dtype=np.float64)
    return np.where(p > 0, np.log(np.maximum(p, 1e-300)), -1e290)


def half_width(variance: float, tail: float = TAIL) -> float:
    """Bernstein's inequality: a sum of 0/1 variables strays further than this from its mean with probability below `tail` on each side."""
    depth = -math.log(tail)
    return math.sqrt(2 * variance * depth) + 2 * depth / 3


def cdf(k: int, n: int, p: float) -> float:
    """P(Bin(n, p) <= k), exact up to rounding."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    first = max(0, math.floor(min(k, n * p) - half_width(n * p * (1 - p))) - 1)
    ks = np.arange(first, k + 1)
    terms = np.exp(log_choose(n, ks) + ks * math.log(p) + (n - ks) * math.log1p(-p))
    return min(1.0, float(terms.sum()))


def _solve_rate(beyond: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Bracket, 1e-11 wide relative to its upper end, of the rate where `beyond` turns from False to True."""
    while high - low > 1e-11 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if beyond(middle) else (middle, high)
        if high < 1e-300:
            break
    return low, high


@lru_cache(maxsize=4096)
def lower_rate(successes: int, n: int, confidence: float) -> float:
    """Clopper-Pearson one-sided lower bound of a binomial rate at `confidence`; 0.0 without a success."""
    if successes == 0:
        return 0.0
    miss = 1.0 - confidence
    # P(X >= s) = P(n - X <= n - s), a short sum of its own rather than one minus a number close to one.
    return _solve_rate(lambda p: cdf(n - successes, n, 1.0 - p) > miss, 0.0, successes / n)[0]


@lru_cache(maxsize=4096)
def upper_rate(successes: int, n: int, confidence: float) -> float:
    """Clopper-Pearson one-sided upper bound of a binomial rate at `confidence`; 1.0 when all succeeded."""
    if successes == n:
        return 1.0
    miss = 1.0 - confidence
    return _solve_rate(lambda p: cdf(successes, n, p) <= miss, successes / n, 1.0)[1]
