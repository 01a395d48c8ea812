"""Distribution-free intervals for quantiles and ratios of timings, and exact ones for proportions. Two-sided, equal tails.

Timings are skewed and have outliers, so no normal theory: the interval of a quantile runs between two of the sorted values. How many values lie below
the true quantile is binomial whatever the distribution (H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lissome.core.errors import BadInput
from lissome.core.statistics.binomial import Floats, log_choose, lower_rate, upper_rate


class Interval(NamedTuple):
    """A figure and the bounds of its interval, in the figure's unit."""

    value: float
    low: float
    high: float


def median_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Median and a two-sided interval that holds the true median with at least `confidence`, for independent values of any distribution.

    At 95 % that takes 6 values. With fewer the interval is min..max, and `achieved_confidence` says how much that is worth.
    """
    return quantile_interval(values, 0.5, confidence)


def quantile_interval(values: ArrayLike, quantile: float, confidence: float = 0.95) -> Interval:
    """The `quantile` (0.95 for p95; interpolated) of the values with its order-statistic interval.

    A side on which no value is extreme enough ends at the smallest or largest value; see `achieved_confidence`. Raises BadInput on no or non-finite values.
    """
    ordered = np.sort(_finite(values, "values"))
    first, last, _ = _ranks(len(ordered), quantile, confidence)
    return Interval(float(np.quantile(ordered, quantile)), float(ordered[first]), float(ordered[last]))


def achieved_confidence(n: int, confidence: float = 0.95, quantile: float = 0.5) -> float:
    """Probability with which the interval of `n` values covers the true quantile: above `confidence`, or below it when n is too small (0.0 for one value)."""
    return _ranks(n, quantile, confidence)[2]


def ratio_interval(a_rounds: ArrayLike, b_rounds: ArrayLike, confidence: float = 0.95) -> Interval:
    """Median of a / b over rounds in which both were measured side by side, with its interval.

    The ratio is taken within each round, so a slow spell of the machine that lasts longer than a round cancels. Raises BadInput unless the
    rounds pair up and are positive.
    """
    a, b = _finite(a_rounds, "rounds"), _finite(b_rounds, "rounds")
    if len(a) != len(b):
        raise BadInput(f"{len(a)} rounds of one and {len(b)} of the other do not pair up", expected="one measurement of each in every round")
    if np.any(a <= 0) or np.any(b <= 0):
        raise BadInput("a round took no time at all", expected="positive figures in every round", do="measure more calls per round")
    return median_interval(a / b, confidence)


def proportion_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Share of successes with Clopper and Pearson's exact interval (Biometrika 26 (1934) 404-413): never covers less than `confidence`."""
    if n < 1 or not 0 <= successes <= n:
        raise BadInput(f"{successes} successes cannot come from {n} examples", expected="0 <= successes <= n, n >= 1")
    _check_confidence(confidence)
    side = 1 - (1 - confidence) / 2
    return Interval(successes / n, lower_rate(int(successes), int(n), side), upper_rate(int(successes), int(n), side))


def _ranks(n: int, quantile: float, confidence: float) -> tuple[int, int, float]:
    """0-based ranks of the interval's ends and the coverage they give."""
    if n < 1:
        raise BadInput("an interval of no values", expected="at least one value")
    if not 0 < quantile < 1:
        raise BadInput(f"a quantile of {quantile} is out of range", expected="a fraction between 0 and 1, such as 0.95 for p95")
    _check_confidence(confidence)
    miss = (1 - confidence) / 2
    counts = np.arange(n + 1)
    # below[k] = P(at most k of n values lie below the quantile); x_(l) is above it when at most l - 1 do.
    below = np.cumsum(np.exp(log_choose(n, counts) + counts * math.log(quantile) + (n - counts) * math.log1p(-quantile)))
    slack = miss * (1 + 1e-12)
    first = max(int(np.searchsorted(below, slack, side="right")) - 1, 0)
    last = min(int(np.searchsorted(below, 1 - slack, side="left")), n - 1)
    # The ends of x_(first + 1) .. x_(last + 1) cover when between first + 1 and last values lie below.
    covered = (below[last] if last >= 0 else 0.0) - below[first]
    return first, last, float(max(covered, 0.0))


def _finite(values: ArrayLike, what: str) -> Floats:
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size == 0:
        raise BadInput(f"an interval of no {what}", expected="at least one value")
    if not np.all(np.isfinite(array)):
        raise BadInput(f"{int((~np.isfinite(array)).sum())} of {array.size} {what} are not finite numbers", expected="finite numbers only")
    return array


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise BadInput(f"a confidence of {confidence} is out of range", expected="a fraction between 0 and 1, such as 0.95")
