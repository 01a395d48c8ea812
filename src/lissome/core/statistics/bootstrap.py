"""Paired bootstrap of the mean drop for real-valued scores, made honest about what a sample has not shown.

Ordinary bootstraps believe that the sample holds everything that can happen. Compressed models break this: most examples score the same as before and a
few score much worse, and a sample may hold none of those few. Where 1 % of examples lose everything, the 95 % bounds of BCa and of the studentised
bootstrap cover 42 % at n = 50 and 85 % at n = 200 (200 repetitions; `benchmarks/certification.py` prints the table).

So the sample gets one more example, as bad as the scores' range allows, and all are reweighted by Dirichlet(1, ..., 1) draws (Rubin's bootstrap, Annals of
Statistics 9 (1981) 130-134). The 1 - alpha quantile of the reweighted mean is N. Gaffke's bound (Mathematical Methods of Statistics 14 (2005); also
E. Learned-Miller and P. Thomas, arXiv 1905.06208). For two-valued data it equals Clopper-Pearson and is proved; in general that it covers is a
conjecture which extensive simulation, P. Stark's and the one here, has not broken (fperez.github.io/StatNotes/gaffke.html). The price is width where n
is small against range / margin; as n grows it becomes the ordinary bootstrap.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lissome.core.errors import BadInput
from lissome.core.statistics.binomial import Floats

DRAWS = 10_000
"""Monte Carlo error of a p-value of 0.05 is then 0.002; the bound and p-value are rounded to the safe side."""


class BootstrapDrop(NamedTuple):
    """Mean drop with one-sided bounds and the p-value of "the drop is `margin` or more", in units of the score or as a share of the original's."""

    point: float
    low: float
    high: float
    p_value: float


def likely_range(original: Floats, candidate: Floats) -> tuple[float, float]:
    """[0, 1] when every score lies in it, else the range seen in both arrays together."""
    low, high = float(min(original.min(), candidate.min())), float(max(original.max(), candidate.max()))
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def bootstrap_drop(
    original: Floats,
    candidate: Floats,
    margin: float,
    confidence: float,
    seed: int = 0,
    relative: bool = False,
    score_range: tuple[float, float] | None = None,
    draws: int = DRAWS,
) -> BootstrapDrop:
    """Mean of original - candidate over paired scores [n] (a share of the original's mean when `relative`), with bounds one-sided at `confidence`.

    score_range: least and greatest score one example can have; it sets the added worst example. Default: see `likely_range`. An unbounded score
    (a log-likelihood) has no true range: its bound then rests on the range seen. Same seed, same result.
    """
    least, greatest = score_range or likely_range(original, candidate)
    if not least < greatest:
        raise BadInput(f"all {len(original)} scores are {least:g}: nothing says how far a score could fall", do="pass score_range=(least, greatest)")
    if relative and original.mean() <= 0:
        raise BadInput(f"a drop relative to a mean score of {original.mean():g} has no meaning", do="set an absolute limit instead")
    miss = 1 - confidence
    worst, best = _reweighted(original, candidate, (least, greatest), np.random.default_rng(seed), relative, draws)
    allowed = math.floor(miss * (draws + 1) + 1e-9) - 1
    if allowed < 0:
        raise BadInput(f"a confidence of {confidence:.6%} needs more than {draws} bootstrap draws", do="ask for at most 99.99%")
    above = int((worst >= margin).sum())
    high = float(np.partition(worst, draws - 1 - allowed)[draws - 1 - allowed])
    low = float(np.partition(best, allowed)[allowed])
    drop = float(original.mean() - candidate.mean())
    return BootstrapDrop(drop / float(original.mean()) if relative else drop, low, high, (above + 1) / (draws + 1))


def _reweighted(
    original: Floats, candidate: Floats, score_range: tuple[float, float], generator: np.random.Generator, relative: bool, draws: int
) -> tuple[Floats, Floats]:
    """Reweighted drops with the worst possible example added, and with the best: two arrays [draws].

    Dirichlet weights are exponentials over their sum; equal pairs share one gamma variable, so that scores of few distinct values are quick.
    """
    least, greatest = score_range
    pairs, counts = np.unique(np.stack([original, candidate], axis=1), axis=0, return_counts=True)
    chunk = max(1, 2_000_000 // len(pairs))
    worst: list[Floats] = []
    best: list[Floats] = []
    single = bool(counts.max() == 1)
    for begin in range(0, draws, chunk):
        rows = min(chunk, draws - begin)
        size = (rows, len(pairs))
        weights = generator.standard_exponential(size) if single else generator.standard_gamma(counts.astype(np.float64), size)
        extra = generator.standard_exponential(rows)
        total = weights.sum(axis=1) + extra
        before, after = (weights @ pairs).T
        for drops, old, new in ((worst, greatest, least), (best, least, greatest)):
            mean_before, mean_after = (before + extra * old) / total, (after + extra * new) / total
            if relative:
                # A reweighted original mean at or below zero makes the share unbounded: count it against the candidate.
                share = 1 - mean_after / np.where(mean_before > 0, mean_before, 1.0)
                drops.append(np.where(mean_before > 0, share, np.inf if drops is worst else -np.inf))
            else:
                drops.append(mean_before - mean_after)
    return np.concatenate(worst), np.concatenate(best)
