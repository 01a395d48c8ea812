from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput
from lissome.core.statistics import drop_interval, drop_p_value, drop_upper_bound, paired, reference, tango

from .test_tango import counts

levels = st.sampled_from([0.5, 0.8, 0.95, 0.99])


def ordering(n: int, confidence: float) -> np.ndarray:
    lost, gained = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    possible = lost + gained <= n
    bounds = np.full((n + 1, n + 1), np.inf)
    bounds[possible] = tango.asymptotic_upper_bound(lost[possible], gained[possible], n, confidence)
    return bounds


@given(case=counts(largest=14), margin=st.floats(-0.6, 0.9), confidence=levels)
@settings(deadline=None, max_examples=150)
def test_p_value_equals_enumeration(case, margin, confidence):
    lost, gained, n = case
    seen = paired._observe(lost, gained, n, confidence)
    rates = np.append(np.linspace(seen.low_rate, seen.high_rate, 3001), np.clip(-margin, seen.low_rate, seen.high_rate))
    expected = reference.p_value(ordering(n, confidence), lost, gained, margin, rates, seen.gamma)
    assert drop_p_value(lost, gained, n, margin, confidence) == pytest.approx(expected, abs=2e-5)


@given(case=st.tuples(st.integers(200, 4000), st.floats(0, 0.3), st.floats(0, 0.3)), margin=st.floats(0, 0.2))
@settings(deadline=None, max_examples=12)
def test_the_grid_finds_the_maximum(case, margin):
    n, lost, gained = case[0], int(case[0] * case[1]), int(case[0] * case[2])
    seen = paired._observe(lost, gained, n, 0.95)
    high = min(seen.high_rate, (1 - margin) / 2)
    if seen.low_rate > high:
        return
    rates = np.sin(np.linspace(np.arcsin(np.sqrt(seen.low_rate)), np.arcsin(np.sqrt(high)), 1500)) ** 2
    dense = float(paired.probability(seen.outcomes, rates + margin, rates).max())
    assert drop_p_value(lost, gained, n, margin) >= min(1.0, dense + seen.gamma) - 1e-6


@given(n=st.integers(50, 3000), drop=st.floats(-0.05, 0.2), gained=st.just(0.0) | st.floats(1e-9, 0.3))  # scipy's pmf overflows at the smallest floats
@settings(deadline=None, max_examples=40)
def test_probability_of_a_region_equals_the_sum_of_its_columns(n, drop, gained):
    """The recurrence over columns against scipy's binomial, column by column."""
    from scipy import stats

    lost_rate = max(gained + drop, 0.0)
    outcomes = paired.region(-1.5, n, drop, gained, gained)
    gains = outcomes.first + np.arange(len(outcomes.limits))
    expected = (stats.binom.pmf(gains, n, gained) * stats.binom.cdf(outcomes.limits, n - gains, lost_rate / (1 - gained))).sum()
    assert float(paired.probability(outcomes, np.array([lost_rate]), np.array([gained]))[0]) == pytest.approx(expected, rel=1e-7, abs=1e-12)


@given(case=counts(largest=400), margins=st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9)), confidence=levels)
@settings(deadline=None, max_examples=80)
def test_a_larger_margin_is_never_harder(case, margins, confidence):
    lost, gained, n = case
    small, large = sorted(margins)
    assert drop_p_value(lost, gained, n, large, confidence) <= drop_p_value(lost, gained, n, small, confidence) + 1e-6


@given(case=counts(largest=400), margin=st.floats(-0.5, 0.9))
@settings(deadline=None, max_examples=80)
def test_one_more_lost_is_never_easier(case, margin):
    lost, gained, n = case
    if lost + gained < n:
        assert drop_p_value(lost + 1, gained, n, margin) >= drop_p_value(lost, gained, n, margin) - 1e-6


@given(case=counts(largest=800), margin=st.floats(0, 0.3), confidence=levels)
@settings(deadline=None, max_examples=50)
def test_bound_and_p_value_say_the_same(case, margin, confidence):
    lost, gained, n = case
    certified = drop_p_value(lost, gained, n, margin, confidence) <= 1 - confidence
    assert (drop_upper_bound(lost, gained, n, confidence, near=margin) <= margin) == certified


@given(case=counts(largest=800), confidence=levels)
@settings(deadline=None, max_examples=40)
def test_interval_holds_the_point_and_mirrors(case, confidence):
    lost, gained, n = case
    found = drop_interval(lost, gained, n, confidence)
    mirrored = drop_interval(gained, lost, n, confidence)
    assert -1 <= found.low <= found.point + 1e-6
    assert found.point - 1e-6 <= found.high <= 1
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


@pytest.mark.parametrize(("lost", "gained", "n"), [(40, 20, 6000), (150, 100, 10_000), (900, 850, 10_000)])
def test_close_to_the_asymptotic_bound_when_n_is_large(lost, gained, n):
    exact, asymptotic = drop_upper_bound(lost, gained, n, 0.95), float(tango.asymptotic_upper_bound(lost, gained, n, 0.95))
    assert exact == pytest.approx(asymptotic, rel=0.02)


def test_nothing_lost_is_the_rule_of_three():
    """With no discordant example the p-value is (1 - margin)^n, plus gamma."""
    assert drop_p_value(0, 0, 299, 0.01) == pytest.approx(0.99**299 + 1e-4, abs=1e-9)
    assert drop_p_value(0, 0, 299, 0.01) <= 0.05 < drop_p_value(0, 0, 298, 0.01)


def test_everything_lost_certifies_nothing():
    assert drop_p_value(50, 0, 50, 0.9) == 1.0
    assert drop_upper_bound(50, 0, 50, 0.95) == 1.0


def test_everything_gained_certifies_the_smallest_margin():
    assert drop_p_value(0, 50, 50, 0.0) == pytest.approx(1e-4, abs=1e-6)
    assert drop_upper_bound(0, 50, 50, 0.95) < -0.85


def test_a_confident_test_can_reach_small_p_values():
    assert drop_p_value(0, 30, 5000, 0.01, confidence=0.99999) < 1e-5


@pytest.mark.parametrize("case", [(-1, 0, 10), (0, -1, 10), (6, 5, 10), (0, 0, 0)])
def test_impossible_counts(case):
    with pytest.raises(BadInput, match="cannot come from"):
        drop_p_value(*case, 0.01)


@pytest.mark.parametrize("confidence", [0.0, 0.49, 1.0, 95.0, float("nan")])
def test_impossible_confidence(confidence):
    with pytest.raises(BadInput, match=r"confidence of .* out of range"):
        drop_interval(1, 1, 100, confidence)


@pytest.mark.parametrize("margin", [-1.0, 1.0, 5.0, float("nan")])
def test_impossible_margin(margin):
    with pytest.raises(BadInput, match=r"margin of .* out of range"):
        drop_p_value(1, 1, 100, margin)
