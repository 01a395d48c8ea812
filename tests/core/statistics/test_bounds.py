from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lissome.core.errors import BadInput
from lissome.core.statistics import binomial_p_value, calibrate, fixed_sequence, hoeffding_bentkus_p_value


def test_hoeffding_bentkus_by_hand():
    mean, n, alpha = 0.02, 500, 0.05
    kl = mean * math.log(mean / alpha) + (1 - mean) * math.log((1 - mean) / (1 - alpha))
    expected = min(math.exp(-n * kl), math.e * stats.binom.cdf(10, n, alpha))
    assert hoeffding_bentkus_p_value(mean, n, alpha) == pytest.approx(expected)


@given(n=st.integers(1, 2000), share=st.floats(0, 1), alpha=st.floats(0.001, 0.999))
def test_the_exact_p_value_is_never_above_hoeffding_bentkus(n, share, alpha):
    failures = int(share * n)
    assert binomial_p_value(failures, n, alpha) <= hoeffding_bentkus_p_value(failures / n, n, alpha) + 1e-12


@given(n=st.integers(1, 500), means=st.tuples(st.floats(0, 1), st.floats(0, 1)), alpha=st.floats(0.01, 0.9))
def test_a_smaller_loss_is_never_harder(n, means, alpha):
    small, large = sorted(means)
    assert hoeffding_bentkus_p_value(small, n, alpha) <= hoeffding_bentkus_p_value(large, n, alpha) + 1e-12


def test_above_alpha_hoeffding_says_nothing():
    assert hoeffding_bentkus_p_value(0.3, 100, 0.2) == 1.0


def test_fixed_sequence_stops_at_the_first_failure():
    assert fixed_sequence([0.01, 0.04, 0.2, 0.001], 0.05) == 2
    assert fixed_sequence([0.2, 0.001], 0.05) == 0
    assert fixed_sequence([], 0.05) == 0
    assert fixed_sequence([0.01, float("nan"), 0.01], 0.05) == 1


def test_calibrate_returns_the_boldest_certified_setting():
    losses = np.zeros((4, 400))
    losses[1, :4], losses[2, :10], losses[3, :60] = 1, 1, 1
    assert calibrate(losses, alpha=0.05, delta=0.05) == 2
    assert calibrate(losses[3:], alpha=0.05, delta=0.05) is None
    assert calibrate(0.5 * losses, alpha=0.05, delta=0.05) == 2


@pytest.mark.parametrize("losses", [[[0.1, 1.2]], [[-0.1, 0.5]], [[float("nan"), 0.5]]])
def test_losses_must_be_between_zero_and_one(losses):
    with pytest.raises(BadInput, match=r"outside \[0, 1\]"):
        calibrate(losses, 0.1, 0.1)


def test_shapes_and_levels_are_checked():
    with pytest.raises(BadInput, match="shape"):
        calibrate([0.1, 0.2], 0.1, 0.1)
    with pytest.raises(BadInput, match="alpha = 0 is out of range"):
        binomial_p_value(1, 10, 0)
    with pytest.raises(BadInput, match="delta = 1 is out of range"):
        fixed_sequence([0.1], 1)
    with pytest.raises(BadInput, match="11 failures cannot come from 10"):
        binomial_p_value(11, 10, 0.1)
    with pytest.raises(BadInput, match=r"mean loss of 1\.5"):
        hoeffding_bentkus_p_value(1.5, 10, 0.1)
