"""One question, one answer: is the candidate's drop against the original, on the same examples, below the margin?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lissome.core.errors import BadInput
from lissome.core.statistics.binomial import Floats, lower_rate, upper_rate
from lissome.core.statistics.bootstrap import bootstrap_drop, likely_range
from lissome.core.statistics.paired import check_counts, drop_p_value, drop_upper_bound
from lissome.core.statistics.planning import LIMIT, examples_needed

SCORE_SHARE = 0.1
"""Share of the allowed error spent on not knowing the original's own score, when the margin is relative to it."""

DropMethod = Literal["exact paired test", "paired bootstrap"]


@dataclass(frozen=True, slots=True)
class DropTest:
    """The outcome of `certify_drop`.

    drop, low, upper, margin: in units of the score (0.01 is one point for 0/1 scores), or shares of the original's mean score when `relative`.
    low and upper are one-sided bounds, EACH at `confidence`; together a two-sided interval at 2 * confidence - 1.
    p_value: of "the true drop is `margin` or more"; certified: p_value <= 1 - confidence, which is the same as upper <= margin.
    lost, gained: examples that scored lower and higher than before. original_score: the original's mean score. spread: standard deviation
    of the drop of one example, worst: the largest one possible, both in units of the score.
    """

    drop: float
    low: float
    upper: float
    p_value: float
    certified: bool
    n: int
    method: DropMethod
    margin: float
    confidence: float
    relative: bool
    lost: int
    gained: int
    original_score: float
    spread: float
    worst: float


def certify_drop(
    original_scores: ArrayLike,
    candidate_scores: ArrayLike,
    margin: float,
    confidence: float,
    exact: bool,
    seed: int = 0,
    relative: bool = False,
    score_range: tuple[float, float] | None = None,
) -> DropTest:
    """Test whether the mean score falls by less than `margin`, from paired scores [n], higher is better.

    exact: the scores are only ever 0 or 1: the exact paired test. Otherwise the paired bootstrap of `bootstrap`, seeded by `seed`, with
    `score_range` as the least and greatest score an example can have. relative: `margin` is a share of the original's mean score.
    Raises BadInput for scores that do not pair up, are not finite, or are not 0/1 though `exact`.
    """
    original, candidate = _paired_scores(original_scores, candidate_scores)
    if not 0 <= margin < (1 if exact or relative else math.inf):
        raise BadInput(f"a margin of {margin} is out of range", expected="a fraction from 0 up to 1, such as 0.01 for one point")
    n = len(original)
    lost, gained = int((candidate < original).sum()), int((candidate > original).sum())
    check_counts(lost, gained, n, confidence)
    if exact:
        _check_binary(original, candidate)
        score_range = (0.0, 1.0)
        right = int(original.sum())
        found = _exact_relative(lost, gained, n, right, margin, confidence) if relative else _exact_absolute(lost, gained, n, margin, confidence)
    else:
        score_range = score_range or likely_range(original, candidate)
        found = bootstrap_drop(original, candidate, margin, confidence, seed, relative, score_range)
    drop, low, upper, p_value = found
    return DropTest(
        drop=drop,
        low=low,
        upper=upper,
        p_value=p_value,
        certified=p_value <= 1 - confidence,
        n=n,
        method="exact paired test" if exact else "paired bootstrap",
        margin=margin,
        confidence=confidence,
        relative=relative,
        lost=lost,
        gained=gained,
        original_score=float(original.mean()),
        spread=float(np.std(original - candidate)),
        worst=score_range[1] - score_range[0],
    )


def _exact_absolute(lost: int, gained: int, n: int, margin: float, confidence: float) -> tuple[float, float, float, float]:
    """Drop, lower and upper bound, p-value."""
    upper = drop_upper_bound(lost, gained, n, confidence, near=margin)
    low = -drop_upper_bound(gained, lost, n, confidence)
    return (lost - gained) / n, low, upper, drop_p_value(lost, gained, n, margin, confidence)


def _exact_relative(lost: int, gained: int, n: int, right: int, margin: float, confidence: float) -> tuple[float, float, float, float]:
    """The same as shares of the original's score s, which is itself only estimated, from `right` of n.

    With s_low a lower bound of s that fails with probability a, p = P(margin * s_low) + a is a valid p-value: unless the bound fails,
    margin * s_low <= margin * s, and the exact p-value falls as the margin grows, so p is above the p-value at the true margin.
    Berger and Boos's argument once more, with s as the nuisance; it needs no independence between s and the drop.
    """
    if right == 0:
        raise BadInput("the original scores no example right: a relative drop has no meaning", do="set an absolute limit, or check the original")
    miss = 1 - confidence
    spent = SCORE_SHARE * miss
    least, most = lower_rate(right, n, 1 - spent), upper_rate(right, n, 1 - spent)
    left = 1 - (miss - spent)
    p_value = min(1.0, drop_p_value(lost, gained, n, margin * least, left) + spent)
    upper = drop_upper_bound(lost, gained, n, left, near=margin * least)
    low = -drop_upper_bound(gained, lost, n, left)
    # Divide by the end of the score's interval that moves each bound outwards.
    return (lost - gained) / right, low / (most if low > 0 else least), upper / (least if upper > 0 else most), p_value


def more_examples(test: DropTest, power: float = 0.8) -> int | None:
    """Test examples that would certify `test.margin` with probability `power` if the true rates were the observed ones.

    None when the observed drop is not below the margin, or no practical number would do. A plan, not a promise: the observed rates are estimates.
    """
    if test.drop >= test.margin:
        return None
    scale = test.original_score if test.relative else 1.0
    margin, drop = test.margin * scale, test.drop * scale
    if test.method == "exact paired test":
        try:
            return examples_needed((test.lost + test.gained) / test.n, drop, margin, test.confidence, power)
        except BadInput:  # the margin is out of reach: zero, or too many examples
            return None
    normal = NormalDist()
    by_spread = ((normal.inv_cdf(test.confidence) + normal.inv_cdf(power)) * test.spread / (margin - drop)) ** 2
    # Where nothing differs the added worst example decides alone: its Dirichlet weight exceeds w with probability (1 - w)^n.
    share = min(margin / test.worst, 0.5)
    alone = math.log(1 - test.confidence) / math.log1p(-share) if share > 0 else math.inf
    needed = max(by_spread, alone)
    return math.ceil(needed) if needed <= LIMIT else None


def _paired_scores(original_scores: ArrayLike, candidate_scores: ArrayLike) -> tuple[Floats, Floats]:
    original, candidate = (np.asarray(scores, dtype=np.float64) for scores in (original_scores, candidate_scores))
    if original.ndim != 1 or original.shape != candidate.shape:
        raise BadInput(
            f"scores of shape {original.shape} and {candidate.shape} do not pair up", expected="one score per example for each model, on the same examples"
        )
    if original.size == 0:
        raise BadInput("there are no test examples to score", do="give the task a test split")
    for name, scores in (("original", original), ("candidate", candidate)):
        wrong = np.flatnonzero(~np.isfinite(scores))
        if wrong.size:
            raise BadInput(f"the {name}'s score of example {wrong[0]} is {scores[wrong[0]]}", expected="a finite score for every example")
    return original, candidate


def _check_binary(original: Floats, candidate: Floats) -> None:
    for name, scores in (("original", original), ("candidate", candidate)):
        wrong = np.flatnonzero((scores != 0) & (scores != 1))
        if wrong.size:
            raise BadInput(
                f"the {name}'s score of example {wrong[0]} is {scores[wrong[0]]:g}, but the task says that scores are 0 or 1",
                do="declare the task's score as not exact, so that the bootstrap is used",
            )
