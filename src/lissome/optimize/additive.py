"""The additive model: a plan takes one choice for every group, and its loss and costs are the sums of its choices'.

For one cost the whole Pareto front is found exactly, by dynamic programming over groups that keeps only states no other state beats (the knapsack with
dominance; auto-round's AutoScheme, which searches bits per layer, has the same table). For several costs at once the program is integer and linear, and
HiGHS solves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lissome.core.errors import BadInput, MissingExtra

MOST = 20_000
"""States that are kept. Where more are left, the best of each 1/20,000 of their range of costs stays: far finer than anything is measured."""


@dataclass(frozen=True)
class Choice:
    """One option of one group. loss: what it adds to the loss; costs: what it adds to each cost (negative where it saves)."""

    name: str
    loss: float
    costs: tuple[float, ...]


Groups = Sequence[Sequence[Choice]]


@dataclass(frozen=True)
class Point:
    """A plan: the position of the choice taken in each group, and the sums."""

    picks: tuple[int, ...]
    loss: float
    costs: tuple[float, ...]


def front(groups: Groups, cost: int = 0) -> list[Point]:
    """Every plan that no other plan beats in loss and in the `cost`-th cost, from the cheapest to the dearest (their losses fall strictly).

    Exact while no more than 20,000 states are left. Raises BadInput for a group without choices and for figures that are not finite.
    """
    _check(groups)
    totals, losses = np.zeros(1), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for group in groups:
        grown = _sums(totals, [choice.costs[cost] for choice in group])
        worse = _sums(losses, [choice.loss for choice in group])
        order = np.lexsort((worse, grown))
        lowest = np.minimum.accumulate(worse[order])
        kept = _thinned(order[np.concatenate([[True], worse[order][1:] < lowest[:-1]])], grown)
        totals, losses = grown[kept], worse[kept]
        steps.append((kept // len(group), kept % len(group)))
    return [_point(groups, picks) for picks in _traced(steps, len(totals))]


def within(groups: Groups, budgets: Sequence[float | None]) -> Point | None:
    """The plan of least loss whose costs keep all `budgets` (None: no limit on that cost); None where there is none.

    Needs scipy, whose `milp` is HiGHS. Raises BadInput as `front` does, MissingExtra without scipy.
    """
    _check(groups)
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ModuleNotFoundError as error:
        raise MissingExtra("scipy", "plan", "several limits at once") from error
    flat = [choice for group in groups for choice in group]
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    one_each = csr_array((np.ones(len(flat)), (owner, np.arange(len(flat)))), shape=(len(groups), len(flat)))
    limits = [(i, budget) for i, budget in enumerate(budgets) if budget is not None]
    constraints = [LinearConstraint(one_each, 1, 1)]
    if limits:
        constraints.append(LinearConstraint(np.array([[choice.costs[i] for choice in flat] for i, _ in limits]), -np.inf, [budget for _, budget in limits]))
    found = milp(np.array([choice.loss for choice in flat]), integrality=np.ones(len(flat)), bounds=Bounds(0, 1), constraints=constraints)
    if found.x is None:
        return None
    starts = np.cumsum([0, *(len(group) for group in groups[:-1])])
    return _point(groups, [int(np.argmax(found.x[start : start + len(group)])) for start, group in zip(starts, groups, strict=True)])


def _sums(totals: np.ndarray, added: Sequence[float]) -> np.ndarray:
    """Every total with everything that can be added, rounded so that equal sums are equal in whatever order they were added."""
    found: np.ndarray = np.round((totals[:, None] + np.asarray(added)).ravel(), 12)
    return found


def _thinned(kept: np.ndarray, grown: np.ndarray) -> np.ndarray:
    """At most MOST of the states `kept`, which are in order of cost: of each stretch of the range the last, whose loss is least, and the cheapest of all."""
    if len(kept) <= MOST:
        return kept
    cost = grown[kept]
    stretch = ((cost - cost[0]) / (cost[-1] - cost[0]) * (MOST - 2)).astype(np.int64)
    last = np.append(stretch[1:] != stretch[:-1], True)
    last[0] = True
    thinned: np.ndarray = kept[last]
    return thinned


def _check(groups: Groups) -> None:
    for i, group in enumerate(groups):
        if not group:
            raise BadInput(f"group {i} has no choices.", expected="at least one choice for every group")
        for choice in group:
            if not np.isfinite([choice.loss, *choice.costs]).all():
                raise BadInput(f'the choice "{choice.name}" of group {i} has a loss or cost that is not finite.', do="leave out what could not be measured")


def _traced(steps: list[tuple[np.ndarray, np.ndarray]], count: int) -> list[list[int]]:
    """The picks that lead to each final state, read backwards through the groups."""
    at, picks = np.arange(count), []
    for parents, taken in reversed(steps):
        picks.append(taken[at])
        at = parents[at]
    return np.array(picks[::-1], dtype=int).T.reshape(count, len(steps)).tolist()


def _point(groups: Groups, picks: Sequence[int]) -> Point:
    taken = [group[pick] for group, pick in zip(groups, picks, strict=True)]
    costs = tuple(float(sum(column)) for column in zip(*(choice.costs for choice in taken), strict=True))
    return Point(tuple(picks), float(sum(choice.loss for choice in taken)), costs)
