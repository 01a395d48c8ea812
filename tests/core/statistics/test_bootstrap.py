from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lissome.core.errors import BadInput
from lissome.core.statistics import bootstrap_drop
from lissome.core.statistics.bootstrap import likely_range


def test_two_valued_drops_give_clopper_pearson():
    """Scores fall from 1 to 0 on k of n examples: Gaffke's bound is Clopper and Pearson's, up to Monte Carlo error."""
    n, k = 200, 7
    original, candidate = np.ones(n), np.ones(n)
    candidate[:k] = 0
    found = bootstrap_drop(original, candidate, 0.05, 0.95, draws=100_000)
    assert found.point == pytest.approx(k / n)
    assert found.high == pytest.approx(stats.beta.ppf(0.95, k + 1, n - k), rel=0.01)
    assert found.p_value == pytest.approx(stats.binom.cdf(k, n, 0.05), rel=0.05)


def test_close_to_normal_theory_when_n_is_large():
    random = np.random.default_rng(3)
    original = random.uniform(0.2, 0.8, 4000)
    drops = random.normal(0.002, 0.1, 4000)
    found = bootstrap_drop(original, original - drops, 0.01, 0.95)
    assert found.high == pytest.approx(drops.mean() + 1.645 * drops.std() / np.sqrt(4000), abs=5e-4)
    assert found.low == pytest.approx(drops.mean() - 1.645 * drops.std() / np.sqrt(4000), abs=5e-4)


def test_equal_scores_still_leave_room_for_what_was_not_seen():
    scores = np.full(100, 0.7)
    found = bootstrap_drop(scores, scores, 0.01, 0.95)
    assert found.point == 0
    assert found.high == pytest.approx(1 - 0.05 ** (1 / 100), rel=0.05)  # 0 of 100
    assert found.p_value > 0.3


def test_bound_and_p_value_say_the_same():
    random = np.random.default_rng(4)
    original = random.uniform(0, 1, 300)
    candidate = np.clip(original - random.normal(0.01, 0.05, 300), 0, 1)
    for margin in np.linspace(0, 0.04, 41):
        found = bootstrap_drop(original, candidate, margin, 0.95, draws=999)
        assert (found.p_value <= 0.05) == (found.high < margin)


def test_same_seed_same_result_and_order_of_examples_does_not_matter():
    random = np.random.default_rng(5)
    original, candidate = random.uniform(0, 1, (2, 200))
    first = bootstrap_drop(original, candidate, 0.01, 0.95, seed=1)
    assert bootstrap_drop(original, candidate, 0.01, 0.95, seed=1) == first
    shuffled = random.permutation(200)
    assert bootstrap_drop(original[shuffled], candidate[shuffled], 0.01, 0.95, seed=1)[1:] == first[1:]
    assert bootstrap_drop(original, candidate, 0.01, 0.95, seed=2) != first


def test_relative_drop_is_a_share_of_the_original():
    random = np.random.default_rng(6)
    original = random.uniform(0.4, 0.6, 2000)
    found = bootstrap_drop(original, 0.98 * original, 0.03, 0.95, relative=True)
    assert found.point == pytest.approx(0.02)
    assert found.low < 0.02 < found.high


def test_range_of_scores():
    assert likely_range(np.array([0.2, 0.9]), np.array([0.3, 0.4])) == (0.0, 1.0)
    assert likely_range(np.array([-3.0, 1.0]), np.array([-7.0, 0.0])) == (-7.0, 1.0)


def test_no_range_to_fall_through():
    with pytest.raises(BadInput, match=r"all 5 scores are 20.*\n.*score_range"):
        bootstrap_drop(np.full(5, 20.0), np.full(5, 20.0), 0.1, 0.95)


def test_relative_to_nothing():
    with pytest.raises(BadInput, match="relative to a mean score of -1"):
        bootstrap_drop(np.array([-2.0, 0.0]), np.array([-1.0, 0.0]), 0.1, 0.95, relative=True)


def test_more_confidence_than_draws():
    with pytest.raises(BadInput, match="needs more than 999 bootstrap draws"):
        bootstrap_drop(np.array([0.5, 0.6]), np.array([0.5, 0.6]), 0.1, 0.9999, draws=999)
