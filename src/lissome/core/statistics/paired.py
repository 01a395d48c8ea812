"""Exact one-sided inference on the accuracy drop of a candidate against the original, both scored 0/1 on the same n examples.

Only two counts matter: `lost` (original right, candidate wrong) and `gained` (the reverse). They are trinomial with rates p10 and p01,
and the drop is p10 - p01. The test is *unconditional* and *exact*: its error is below the stated one for every n and every pair of rates,
not in the limit. Three ideas make it so.

1. Order. Outcomes are ordered by Tango's asymptotic upper bound at the confidence asked for, which does not depend on the margin tested.
   "At least as good as observed" is then one fixed set R of outcomes, and sup P(R) falls as the margin grows. So the p-value is monotone in the
   margin and in `lost`, the set of margins not rejected is an interval, and bisection finds its end: a limit in the sense of R. J. Buehler,
   JASA 52 (1957) 482-493, ordered by a good approximate bound (computing them: P. Kabaila, doi 10.1007/BF02741305).
   At the margin equal to that bound, R is exactly the rejection region of Tango's (1998) test.
2. Boundary. T rises with `lost`, so for each gained c, R holds the outcomes lost <= b(c). That is all the reduction to the boundary needs (conditional
   monotonicity, Biometrics 67 (2011) 1666-1668): raising p10 at fixed p01 can only lower P(R), so under the null "drop >= margin" R is
   likeliest on p10 = p01 + margin, and P(R) = sum over c of P(gained = c) P(Bin(n - c, p10 / (1 - p01)) <= b(c)): one short sum.
3. Nuisance. P(R) is maximised over p01 within its Clopper-Pearson interval at level 1 - gamma, and gamma is added to the p-value
   (R. L. Berger and D. D. Boos, JASA 89 (1994) 1012-1016; for matched pairs C. Lloyd and M. Moldovan, Statistics in Medicine 27 (2008)
   3540-3549, compare it with alternatives). `gained` alone is Bin(n, p01) whatever p10 is, so this holds inside the null as well.

All bounds are ONE-SIDED: `confidence` 0.95 means that the true drop lies above `high` in at most 5 % of repetitions, and below `low` in at most 5 %.
Read together, low..high is a two-sided interval at 2 * confidence - 1 (90 %).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import BadInput
from lissome.core.statistics.binomial import TAIL, Floats, Ints, half_width, log_choose, lower_rate, safe_log, upper_rate
from lissome.core.statistics.tango import asymptotic_upper_bound, score_statistic

GAMMA_SHARE = 1 / 500
"""Share of the allowed error spent on the nuisance interval: 1e-4 of 0.05. Berger and Boos suggest 1e-3 of 0.05 or less."""

GRID = 65
"""Points over the nuisance interval, about 8 standard deviations of its estimate: spacing 0.12. P(R) bends on the scale of one deviation.
The three highest points are refined; the maximum found is within 1e-6 of that of a dense grid (tested)."""


class DropInterval(NamedTuple):
    """Observed drop and its one-sided bounds, as fractions (0.01 is one point)."""

    point: float
    low: float
    high: float


@dataclass(frozen=True)
class Region:
    """The outcomes (lost, gained) with lost <= limits[gained - first], for gained in a window that holds all but 2 TAIL of the probability.

    steps_*: the terms that carry the binomial cdf from one gained to the next, see `probability`. full: window columns from here on hold every outcome.
    """

    n: int
    first: int
    limits: Ints
    full: int
    log_ways: Floats
    steps_n: Ints
    steps_k: Ints
    steps_log_ways: Floats
    steps_opening: NDArray[np.bool_]
    steps_end: Ints


def region(statistic: float, n: int, drop: float, low_rate: float, high_rate: float) -> Region:
    """Outcomes whose score statistic at `drop` does not exceed `statistic`; the window suits any p01 between the two rates."""
    first = max(0, math.floor(n * low_rate - half_width(n * low_rate * (1 - low_rate))))
    # The variance n q (1 - q) is largest at q = 1/2.
    widest = min(high_rate, 0.5) if high_rate <= 0.5 else max(0.5, low_rate)
    last = min(n, math.ceil(n * high_rate + half_width(n * widest * (1 - widest))))
    gains = np.arange(first, last + 1)
    limits = _largest_lost(gains, n, drop, statistic)
    whole = np.flatnonzero(limits >= n - gains)
    full = int(whole[0]) if whole.size else len(gains)
    here, there = limits[: max(full - 1, 0)], limits[1:full]
    counts = there - here + 1
    ends = np.cumsum(counts)
    opening = np.zeros(int(ends[-1]) if ends.size else 0, dtype=bool)
    starts = ends - counts
    opening[starts] = True
    steps_k = np.arange(opening.size) - np.repeat(starts - here, counts)
    steps_n = np.repeat(n - gains[1:full], counts)
    return Region(
        n,
        first,
        limits,
        full,
        log_choose(n, gains),
        steps_n,
        steps_k,
        log_choose(steps_n, steps_k),
        opening,
        ends - 1,
    )


def _largest_lost(gains: Ints, n: int, drop: float, statistic: float) -> Ints:
    """For each gained, the largest lost whose statistic is at most `statistic`; -1 where none is."""
    low, high = np.full_like(gains, -1), n - gains
    threshold = statistic + 1e-9 * max(1.0, abs(statistic))
    while np.any(low < high):
        middle = (low + high + 1) // 2
        inside = score_statistic(np.maximum(middle, 0), gains, n, drop) <= threshold
        inside |= middle < 0
        low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
    return np.asarray(np.maximum.accumulate(low), dtype=np.int64)


def probability(outcomes: Region, lost_rate: Floats, gained_rate: Floats) -> Floats:
    """P(R) for each pair of rates [k]: sum over gained c of P(C = c) F(c), F(c) = P(Bin(n - c, r) <= b(c)), r = p10 / (1 - p01).

    F is carried from c to c + 1 by adding what it grows by: P(Bin(N - 1) <= b) = P(Bin(N) <= b) + r P(Bin(N - 1) = b), then the terms up to
    the next b. All terms are positive, so nothing cancels, and the whole costs one pmf per step instead of one cdf per column.
    """
    n, width = outcomes.n, len(outcomes.limits)
    gains = outcomes.first + np.arange(width)
    log_q, log_rest = safe_log(gained_rate)[:, None], safe_log(1 - gained_rate)[:, None]
    columns = np.exp(outcomes.log_ways + gains * log_q + (n - gains) * log_rest)
    rate = np.clip(lost_rate / np.maximum(1 - gained_rate, 1e-300), 0.0, 1.0)
    below = np.ones((len(rate), width))
    if outcomes.full > 0:
        log_r, log_s = safe_log(rate)[:, None], safe_log(1 - rate)[:, None]
        start = _cdf_many(int(outcomes.limits[0]), n - outcomes.first, rate)
        inside = np.clip(outcomes.steps_k, 0, outcomes.steps_n)
        terms = np.exp(outcomes.steps_log_ways + inside * log_r + (outcomes.steps_n - inside) * log_s)
        terms *= np.where(outcomes.steps_opening, rate[:, None], 1.0)
        grown = np.cumsum(terms, axis=1)[:, outcomes.steps_end]
        below[:, : outcomes.full] = start[:, None]
        below[:, 1 : outcomes.full] += grown
    return np.asarray(np.minimum((columns * np.minimum(below, 1.0)).sum(axis=1) + 2 * TAIL, 1.0))


def _cdf_many(k: int, n: int, rates: Floats) -> Floats:
    """P(Bin(n, r) <= k) for each r."""
    if k < 0:
        return np.zeros(len(rates))
    if k >= n:
        return np.ones(len(rates))
    low, high = float(rates.min()), float(rates.max())
    widest = max(low * (1 - low), high * (1 - high), 0.25 if low < 0.5 < high else 0.0)
    ks = np.arange(max(0, math.floor(min(k, n * low) - half_width(n * widest)) - 1), k + 1)
    terms = np.exp(log_choose(n, ks) + ks * safe_log(rates)[:, None] + (n - ks) * safe_log(1 - rates)[:, None])
    return np.asarray(terms.sum(axis=1))


@dataclass(frozen=True)
class _Observed:
    """What one pair of counts fixes before any margin is named: the region R, the nuisance interval and its gamma."""

    outcomes: Region | None
    low_rate: float
    high_rate: float
    gamma: float


@lru_cache(maxsize=256)
def _observe(lost: int, gained: int, n: int, confidence: float) -> _Observed:
    gamma = (1 - confidence) * GAMMA_SHARE
    low, high = lower_rate(gained, n, 1 - gamma / 2), upper_rate(gained, n, 1 - gamma / 2)
    bound = float(asymptotic_upper_bound(lost, gained, n, confidence))
    if lost == n or bound >= 1 - 1e-12:
        return _Observed(None, low, high, gamma)
    statistic = float(score_statistic(lost, gained, n, bound))
    return _Observed(region(statistic, n, bound, low, high), low, high, gamma)


def _largest_probability(seen: _Observed, margin: float) -> float:
    """sup of P(R) over p01 in the nuisance interval on the boundary p10 = max(p01 + margin, 0)."""
    if seen.outcomes is None:
        return 1.0
    low, high = seen.low_rate, min(seen.high_rate, (1 - margin) / 2)
    if low > high:
        return 0.0

    def tail(angles: Floats) -> Floats:
        rates = np.sin(angles) ** 2
        return probability(seen.outcomes, np.maximum(rates + margin, 0.0), rates)  # type: ignore[arg-type]

    # Equal steps of the angle asin(sqrt(rate)) are equal steps in standard deviations of its estimate.
    angles = np.linspace(math.asin(math.sqrt(low)), math.asin(math.sqrt(high)), GRID)
    if low < -margin < high:  # p10 leaves zero here: a kink
        angles = np.sort(np.append(angles, math.asin(math.sqrt(-margin))))
    values = tail(angles)
    padded = np.concatenate(([-1.0], values, [-1.0]))
    peaks = np.flatnonzero((values >= padded[:-2]) & (values >= padded[2:]))
    peaks = peaks[np.argsort(values[peaks])[-3:]]
    left, right = angles[np.maximum(peaks - 1, 0)], angles[np.minimum(peaks + 1, len(angles) - 1)]
    inner = left[:, None] + (right - left)[:, None] * np.linspace(0.0, 1.0, 17)[1:-1]
    near = tail(inner.ravel())
    row, at = divmod(int(near.argmax()), inner.shape[1])
    step = (right[row] - left[row]) / 16
    return float(max(values.max(), near.max(), tail(np.linspace(inner[row, at] - step, inner[row, at] + step, 9)).max()))


def check_counts(lost: int, gained: int, n: int, confidence: float) -> None:
    """Raise BadInput unless the counts can come from n examples and the confidence is in [0.5, 1)."""
    if n < 1 or lost < 0 or gained < 0 or lost + gained > n:
        raise BadInput(
            f"{lost} lost and {gained} gained examples cannot come from {n}", expected="whole numbers, lost >= 0, gained >= 0, lost + gained <= n, n >= 1"
        )
    if not 0.5 <= confidence < 1:
        raise BadInput(f"a confidence of {confidence} is out of range", expected="a fraction from 0.5 up to (not including) 1, such as 0.95")


def drop_p_value(lost: int, gained: int, n: int, margin: float, confidence: float = 0.95) -> float:
    """Exact p-value of "the true drop is `margin` or more" against "it is less"; small means the drop is certified.

    margin: a fraction, -1 < margin < 1. confidence: the level the p-value will be held to; it fixes the order of outcomes and gamma before any
    data is seen. Read at another level the p-value stays valid and loses a little power. Never below gamma = (1 - confidence) / 500.
    """
    check_counts(lost, gained, n, confidence)
    if not -1 < margin < 1:
        raise BadInput(f"a margin of {margin} is out of range", expected="a fraction between -1 and 1, such as 0.01 for one point")
    seen = _observe(int(lost), int(gained), int(n), float(confidence))
    return min(1.0, _largest_probability(seen, float(margin)) + seen.gamma)


def drop_upper_bound(lost: int, gained: int, n: int, confidence: float, near: float | None = None) -> float:
    """One-sided exact upper bound of the true drop: the smallest margin that the test certifies, within 1e-7 above.

    near: a margin of interest; the bound is at most `near` exactly when drop_p_value(..., near, confidence) <= 1 - confidence.
    """
    check_counts(lost, gained, n, confidence)
    seen = _observe(int(lost), int(gained), int(n), float(confidence))
    if seen.outcomes is None:
        return 1.0

    def excess(margin: float) -> float:
        """log(p / allowed): above zero where the margin is not certified."""
        p_value = _largest_probability(seen, margin) + seen.gamma
        ratio = math.log(p_value / (1 - confidence))
        return max(ratio, 1e-300) if p_value > 1 - confidence else min(ratio, 0.0)

    low, high, above, below = -1.0, 1.0, math.inf, -math.inf
    guess = float(asymptotic_upper_bound(lost, gained, n, confidence))
    step = 0.02 * (guess - (lost - gained) / n) + 1e-4
    first = [guess + step, guess - step, guess + 8 * step]
    if near is not None and -1 < near < 1:
        first.insert(0, near)
    while first or high - low > 1e-7:
        if first:
            probe = first.pop(0)
            if not low < probe < high:
                continue
        else:
            # log p is close to a straight line here; the ends of the clip close the bracket from the far side once the line has hit.
            share = above / (above - below) if math.isfinite(above - below) else 0.5
            probe = low + (high - low) * min(max(share, 0.01), 0.99)
        found = excess(probe)
        if found > 0:
            low, above = probe, found
        else:
            high, below = probe, found
    return high


def drop_interval(lost: int, gained: int, n: int, confidence: float) -> DropInterval:
    """Observed drop with exact one-sided bounds, each at `confidence` (so low..high is two-sided at 2 * confidence - 1). Fractions.

    The lower bound is the upper bound of the drop read the other way round.
    """
    high = drop_upper_bound(lost, gained, n, confidence)
    low = -drop_upper_bound(gained, lost, n, confidence)
    return DropInterval((lost - gained) / n, low, high)
