"""The paired bootstrap of figures made from sums."""

from __future__ import annotations

import numpy as np
import pytest

from lissome.core.errors import BadInput
from lissome.core.statistics import paired_difference


def ratio(sums):
    """Hits per try, as precision is made."""
    return 100 * sums[0] / sums[1]


def drawn(n, seed, gap=0.05):
    """Two systems on the same examples of unequal size: how often each hits, and the true difference of 100 * gap."""
    rng = np.random.default_rng(seed)
    tries = rng.integers(5, 60, n)
    skill = rng.beta(4, 4, n)
    first, second = rng.binomial(tries, np.clip(skill + gap, 0, 1)), rng.binomial(tries, skill)
    return np.stack([first, tries], 1), np.stack([second, tries], 1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    big = drawn(200_000, 99)
    truth = ratio(big[0].sum(0)) - ratio(big[1].sum(0))
    covered = [low <= truth <= high for _, low, high in (paired_difference(*drawn(80, seed), ratio, draws=300) for seed in range(200))]
    assert 0.89 <= np.mean(covered) <= 0.99


def test_equal_systems_do_not_differ_and_the_seed_decides():
    a, b = drawn(50, 1)
    assert paired_difference(a, a, ratio, draws=50) == (0, 0, 0)
    assert paired_difference(a, b, ratio, draws=50) == paired_difference(a, b, ratio, draws=50)
    assert paired_difference(a, b, ratio, draws=50, seed=1) != paired_difference(a, b, ratio, draws=50)
    value, low, high = paired_difference(a, b, ratio)
    assert low <= value <= high
    assert value == pytest.approx(-paired_difference(b, a, ratio).value)


def test_what_does_not_pair_up_is_refused():
    with pytest.raises(BadInput, match=r"\[3, 2\] of one and \[4, 2\] of the other do not pair up"):
        paired_difference(np.ones((3, 2)), np.ones((4, 2)), ratio)
    with pytest.raises(BadInput, match="1 examples cannot be drawn from"):
        paired_difference(np.ones((1, 2)), np.ones((1, 2)), ratio)
