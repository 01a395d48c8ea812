"""Tango's score statistic for the difference of two paired proportions, and the asymptotic upper bound it gives.

T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
Statistics in Medicine 17 (1998) 891-908.

lost: examples the original got right and the candidate wrong; gained: the reverse; drop = (lost rate) - (gained rate).
The bound here is fast, vectorised and approximate; `paired` uses it to order outcomes and makes an exact statement of that order.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from lissome.core.statistics.binomial import Floats


def gained_rate(lost: ArrayLike, gained: ArrayLike, n: int, drop: ArrayLike) -> Floats:
    """Maximum-likelihood rate of gained examples when the true drop is known: the larger root of 2n q^2 + b q - gained drop (1 - drop) = 0."""
    lost, gained, drop = (np.asarray(part, dtype=np.float64) for part in (lost, gained, drop))
    b = (2 * n - lost + gained) * drop - lost - gained
    c = gained * drop * (1 - drop)
    root = np.sqrt(np.maximum(b * b + 8 * n * c, 0.0))
    # Of the two equal forms of the root, take the one that does not subtract nearly equal numbers.
    return np.where(b > 0, 2 * c / np.where(b > 0, b + root, 1.0), (root - b) / (4 * n))


def score_statistic(lost: ArrayLike, gained: ArrayLike, n: int, drop: ArrayLike) -> Floats:
    """Tango's T: (lost - gained - n drop) over its standard deviation under that drop; strongly negative means the true drop is smaller.

    Rises with `lost`, falls with `gained` and with `drop` (-1 < drop < 1). Zero where both numerator and deviation vanish.
    """
    lost, gained, drop = (np.asarray(part, dtype=np.float64) for part in (lost, gained, drop))
    excess = lost - gained - n * drop
    variance = n * np.maximum(2 * gained_rate(lost, gained, n, drop) + drop - drop * drop, 0.0)
    still = variance <= 0
    limit = np.where(excess == 0, 0.0, np.copysign(np.inf, excess))
    return np.where(still, limit, excess / np.sqrt(np.where(still, 1.0, variance)))


def asymptotic_upper_bound(lost: ArrayLike, gained: ArrayLike, n: int, confidence: float) -> Floats:
    """One-sided upper bound of the true drop at `confidence`, elementwise: the drop at which T = -z. Approximate; found by bisection."""
    z = NormalDist().inv_cdf(confidence)
    shape = np.broadcast_shapes(np.shape(lost), np.shape(gained))
    low, high = np.full(shape, -1.0), np.full(shape, 1.0)
    for _ in range(54):
        middle = 0.5 * (low + high)
        small = score_statistic(lost, gained, n, middle) <= -z
        low, high = np.where(small, low, middle), np.where(small, middle, high)
    return high
