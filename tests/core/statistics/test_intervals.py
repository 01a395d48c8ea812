from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lissome.core.errors import BadInput
from lissome.core.statistics import achieved_confidence, median_interval, proportion_interval, quantile_interval, ratio_interval


def test_ranks_of_a_published_table():
    """n = 20: the 6th and 15th values hold the median with 95.86 % (David and Nagaraja)."""
    assert median_interval(np.arange(1, 21)) == (10.5, 6.0, 15.0)
    assert achieved_confidence(20) == pytest.approx(0.9586, abs=5e-5)


@given(values=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60), confidence=st.floats(0.5, 0.999))
def test_median_lies_in_its_interval_and_order_does_not_matter(values, confidence):
    value, low, high = median_interval(values, confidence)
    assert min(values) <= low <= value <= high <= max(values)
    assert median_interval(values[::-1], confidence) == (value, low, high)


@given(n=st.integers(1, 400), quantile=st.floats(0.05, 0.95), confidence=st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_coverage_is_what_the_binomial_says_and_no_wider_than_needed(n, quantile, confidence):
    _, low, high = quantile_interval(np.arange(n), quantile, confidence)
    below = stats.binom(n, quantile)
    miss_low, miss_high = below.cdf(low), below.sf(high)  # values are their own ranks
    assert achieved_confidence(n, confidence, quantile) == pytest.approx(max(1 - miss_low - miss_high, 0), abs=1e-9)
    half = (1 - confidence) / 2 + 1e-9
    assert miss_low <= half or low == 0
    assert miss_high <= half or high == n - 1
    assert below.cdf(low + 1) > half - 2e-9
    assert below.sf(high - 1) > half - 2e-9


@pytest.mark.parametrize(("n", "true"), [(1, 0.0), (2, 0.5), (3, 0.75), (4, 0.875), (5, 0.9375), (6, 0.96875)])
def test_few_values_give_their_whole_range_and_say_what_it_is_worth(n, true):
    assert median_interval(np.arange(n))[1:] == (0, n - 1)
    assert achieved_confidence(n) == pytest.approx(true)


def test_p95_of_few_values_ends_at_the_largest():
    assert quantile_interval(np.arange(30), 0.95).high == 29
    assert achieved_confidence(30, 0.95, 0.95) < 0.95 <= achieved_confidence(100, 0.95, 0.95)


def test_ratio_cancels_what_both_rounds_share():
    slow_spells = np.array([1, 1, 5, 1, 9, 1, 2, 1.0])
    assert ratio_interval(6 * slow_spells, 2 * slow_spells) == (3.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [([1, 2], [1], "do not pair up"), ([1, 0], [1, 1], "no time at all"), ([], [], "no rounds"), ([1, float("nan")], [1, 1], "1 of 2 rounds are not finite")],
)
def test_bad_rounds(a, b, text):
    with pytest.raises(BadInput, match=text):
        ratio_interval(a, b)


def test_bad_values():
    with pytest.raises(BadInput, match="no values"):
        median_interval([])
    with pytest.raises(BadInput, match="not finite"):
        median_interval([1.0, float("inf")])
    with pytest.raises(BadInput, match="quantile of 95 is out of range"):
        quantile_interval([1.0], 95)
    with pytest.raises(BadInput, match="confidence of 95 is out of range"):
        median_interval([1.0], 95)


@pytest.mark.parametrize("n", [1, 20, 57])
def test_proportion_interval_covers_every_true_rate(n):
    """Exact coverage by summing the pmf, no simulation."""
    intervals = [proportion_interval(k, n) for k in range(n + 1)]
    for rate in np.linspace(0.001, 0.999, 331):
        covering = [low <= rate <= high for _, low, high in intervals]
        assert stats.binom.pmf(np.arange(n + 1), n, rate)[covering].sum() >= 0.95 - 1e-9


def test_proportion_out_of_nothing():
    with pytest.raises(BadInput, match="3 successes cannot come from 2"):
        proportion_interval(3, 2)
