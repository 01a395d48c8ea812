from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lissome.core.statistics import reference, tango


@st.composite
def counts(draw, largest=60):
    n = draw(st.integers(1, largest))
    lost = draw(st.integers(0, n))
    return lost, draw(st.integers(0, n - lost)), n


@given(case=counts(), drop=st.floats(-0.9, 0.9))
@settings(deadline=None)
def test_closed_form_equals_maximum_likelihood_by_search(case, drop):
    lost, gained, n = case
    assert float(tango.gained_rate(lost, gained, n, drop)) == pytest.approx(reference.restricted_rate(lost, gained, n, drop), abs=2e-6)


@given(case=counts(), drop=st.floats(-0.9, 0.9))
@settings(deadline=None)
def test_statistic_equals_its_definition(case, drop):
    lost, gained, n = case
    assume(abs(drop) > 1e-3)
    assert float(tango.score_statistic(lost, gained, n, drop)) == pytest.approx(reference.score_statistic(lost, gained, n, drop), rel=1e-3, abs=1e-3)


def test_statistic_at_zero_drop_is_mcnemar():
    assert float(tango.score_statistic(9, 3, 100, 0.0)) == pytest.approx((9 - 3) / np.sqrt(9 + 3))
    assert float(tango.score_statistic(0, 0, 100, 0.0)) == 0.0


@pytest.mark.parametrize("n", [1, 7, 30])
def test_statistic_rises_with_lost_and_falls_with_gained_and_drop(n):
    """Barnard's convexity and monotonicity in the drop, over every outcome: the exact test rests on both."""
    lost, gained = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    possible = lost + gained <= n
    before = None
    for drop in np.linspace(-0.999, 0.999, 201):
        statistic = np.where(possible, tango.score_statistic(lost, gained, n, drop), np.nan)
        assert not np.any(np.diff(statistic, axis=0) < -1e-9)
        assert not np.any(np.diff(statistic, axis=1) > 1e-9)
        if before is not None:
            assert not np.any(statistic - before > 1e-9)
        before = statistic


def test_interval_of_a_published_table():
    """Airway hyper-responsiveness, 1 against 7 of 21 discordant: Tango's 95 % interval is -0.517 to -0.026.

    M. Fagerland, S. Lydersen, P. Laake, Statistical Analysis of Contingency Tables, 2017, chapter 8.
    """
    high = float(tango.asymptotic_upper_bound(1, 7, 21, 0.975))
    low = -float(tango.asymptotic_upper_bound(7, 1, 21, 0.975))
    assert low == pytest.approx(-0.517, abs=5e-4)
    assert high == pytest.approx(-0.026, abs=5e-4)
