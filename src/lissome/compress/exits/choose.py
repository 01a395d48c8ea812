"""Thresholds: a path of them from "nobody leaves" to bold, fixed on one split, and the boldest point of it that another split certifies.

Learn then Test (Angelopoulos et al. 2021): the path is ordered before the validation split is looked at, so that its points are tested one after the other
at the full level, up to the first that fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lissome.compress.quality import boldest, lost
from lissome.core.errors import BadInput
from lissome.core.statistics import certify_drop, fixed_sequence
from lissome.core.task import Risk
from lissome.nn.depth.confidence import NEVER

GRID = 24
"""Thresholds that are tried for an exit: quantiles of its confidences."""
LEAST_SAVED = 0.01
"""A share of the blocks below which exits are not worth naming."""


@dataclass(frozen=True)
class Answers:
    """What a model with exits says of a split. sure [exits, n]: confidence at each exit; scores [exits + 1, n]: each exit's and the whole model's score;
    original [n]: the score of the model that the exits are held to. Confidences that are not numbers are NaN and reach no threshold."""

    sure: np.ndarray
    scores: np.ndarray
    original: np.ndarray

    def taken(self, thresholds: np.ndarray) -> np.ndarray:
        """The exit of each row [n]; the number of exits where it goes all the way."""
        leaves = self.sure >= thresholds[:, None]
        return np.where(leaves.any(0), leaves.argmax(0), len(self.sure))

    def outcome(self, thresholds: np.ndarray) -> np.ndarray:
        """Each row's score where it leaves [n]."""
        found: np.ndarray = np.take_along_axis(self.scores, self.taken(thresholds)[None], 0)[0]
        return found


def path_of(answers: Answers, costs: np.ndarray, grid: int = GRID) -> list[np.ndarray]:
    """Thresholds [exits] from NEVER on, step by step bolder: each step lowers one threshold, the one that saves most for what it loses on this split.

    costs [exits + 1]: what a row costs that leaves at each exit, and one that goes all the way.
    """
    exits = len(answers.sure)
    steps = [_grid(row, grid) for row in answers.sure]
    at = [0] * exits
    path = [np.full(exits, NEVER)]
    cost, score = _mean_cost(answers, path[0], costs), float(answers.outcome(path[0]).mean())
    while any(at[one] + 1 < len(steps[one]) for one in range(exits)):
        best: tuple[float, int, float, float] | None = None
        for one in (one for one in range(exits) if at[one] + 1 < len(steps[one])):
            tried = path[-1].copy()
            tried[one] = steps[one][at[one] + 1]
            saved, harm = cost - _mean_cost(answers, tried, costs), score - float(answers.outcome(tried).mean())
            # Half an example more: where nothing is lost on so few examples, little may be lost on others.
            worth = saved / (max(harm, 0.0) + 0.5 / len(answers.original))
            if best is None or worth > best[0]:
                best = (worth, one, cost - saved, score - harm)
        assert best is not None
        _, one, cost, score = best
        at[one] += 1
        following = path[-1].copy()
        following[one] = steps[one][at[one]]
        path.append(following)
    return path


def certified(answers: Answers, path: list[np.ndarray], alpha: float, delta: float, risk: Risk, exact: bool, ref: str = "") -> int | None:
    """Index of the boldest point of `path` whose loss is at most alpha with a certainty of 1 - delta, by rows that the path was not made on; None: not one.

    Raises BadInput for alpha or delta outside (0, 1).
    """
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise BadInput(f"{name} = {value} is out of range", expected="a fraction between 0 and 1")
    if risk == "lost":
        return boldest(path, lambda one: lost(answers.original, answers.outcome(one), exact, ref), alpha, delta)[0]
    values = (certify_drop(answers.original, answers.outcome(one), alpha, 1 - delta, exact).p_value for one in path)
    accepted = fixed_sequence(values, delta)
    return accepted - 1 if accepted else None


def nearest_yes(answers: Answers, path: list[np.ndarray], costs: np.ndarray, delta: float, risk: Risk, exact: bool) -> tuple[float, float] | None:
    """The least loss, in steps of a tenth of a point up to ten, at which validation certifies a point that saves something, and the share it saves."""

    def saved(tenths: int) -> float:
        at = certified(answers, path, tenths / 1000, delta, risk, exact)
        return 0.0 if at is None else float(1 - _mean_cost(answers, path[at], costs) / costs[-1])

    # What is certified at one limit is certified at every larger one, so halving finds the least.
    low, high = 0, 100
    if saved(high) < LEAST_SAVED:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if saved(middle) >= LEAST_SAVED else (middle, high)
    return high / 1000, saved(high)


def _grid(sure: np.ndarray, count: int) -> np.ndarray:
    known = sure[np.isfinite(sure)]
    if not len(known):
        return np.array([NEVER])
    return np.concatenate([[NEVER], np.unique(np.quantile(known, np.linspace(0, 1, count + 1)[:-1], method="higher"))[::-1]])


def _mean_cost(answers: Answers, thresholds: np.ndarray, costs: np.ndarray) -> float:
    return float(costs[answers.taken(thresholds)].mean())
