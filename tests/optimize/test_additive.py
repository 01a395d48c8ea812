from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput
from lissome.optimize.additive import Choice, front, within

NUMBERS = st.integers(-40, 40).map(float)
CHOICES = st.builds(lambda loss, a, b: Choice("c", loss, (a, b)), NUMBERS, NUMBERS, NUMBERS)
GROUPS = st.lists(st.lists(CHOICES, min_size=1, max_size=4), min_size=1, max_size=5)


def every_plan(groups):
    for picks in itertools.product(*(range(len(group)) for group in groups)):
        taken = [group[i] for group, i in zip(groups, picks, strict=True)]
        yield sum(c.loss for c in taken), sum(c.costs[0] for c in taken), sum(c.costs[1] for c in taken)


@settings(max_examples=60, deadline=None)
@given(GROUPS)
def test_the_front_is_exactly_what_no_plan_beats(groups):
    plans = {(cost, loss) for loss, cost, _ in every_plan(groups)}
    expected = sorted((c, v) for c, v in plans if not any((c2 <= c and v2 <= v) and (c2, v2) != (c, v) for c2, v2 in plans))
    assert [(p.costs[0], p.loss) for p in front(groups)] == expected


@settings(max_examples=30, deadline=None)
@given(GROUPS)
def test_every_point_is_the_sum_of_its_picks(groups):
    for point in front(groups, cost=1):
        taken = [group[i] for group, i in zip(groups, point.picks, strict=True)]
        assert point.loss == sum(c.loss for c in taken)
        assert point.costs == (sum(c.costs[0] for c in taken), sum(c.costs[1] for c in taken))


@settings(max_examples=40, deadline=None)
@given(GROUPS, NUMBERS, NUMBERS)
def test_several_limits_give_the_least_loss_that_keeps_them(groups, first, second):
    allowed = [loss for loss, a, b in every_plan(groups) if a <= first and b <= second]
    found = within(groups, (first, second))
    if found is None:
        assert not allowed
    else:
        assert found.loss == min(allowed)
        assert found.costs[0] <= first
        assert found.costs[1] <= second


def test_one_limit_gives_the_same_as_the_front():
    rng = np.random.default_rng(0)
    groups = [[Choice(str(i), float(a), (float(b),)) for i, (a, b) in enumerate(rng.integers(0, 100, (4, 2)))] for _ in range(20)]
    points = front(groups)
    for budget in (points[i].costs[0] for i in (0, len(points) // 3, len(points) // 2, -1)):
        best = min((p for p in points if p.costs[0] <= budget), key=lambda p: p.loss)
        found = within(groups, (budget,))
        assert found is not None
        assert found.loss == best.loss
    assert within(groups, (points[0].costs[0] - 1,)) is None
    assert within(groups, (None,)).loss == points[-1].loss


def test_sixty_groups_of_real_costs_have_a_front_of_bounded_size():
    rng = np.random.default_rng(1)
    groups = [[Choice(str(i), float(a), (float(b),)) for i, (a, b) in enumerate(rng.random((6, 2)))] for _ in range(60)]
    points = front(groups)
    assert 50 < len(points) <= 20_000
    costs, losses = [p.costs[0] for p in points], [p.loss for p in points]
    assert losses == sorted(losses, reverse=True)
    assert costs == sorted(costs)
    for share in (0.3, 0.6):
        budget = costs[0] + share * (costs[-1] - costs[0])
        exact = within(groups, (budget,))
        assert exact is not None
        assert min(p.loss for p in points if p.costs[0] <= budget) == pytest.approx(exact.loss, rel=1e-3)


def test_bad_groups_are_named():
    with pytest.raises(BadInput, match="group 1 has no choices"):
        front([[Choice("a", 0.0, (1.0,))], []])
    with pytest.raises(BadInput, match='"int8" of group 0 has a loss or cost that is not finite'):
        front([[Choice("int8", float("nan"), (1.0,))]])
