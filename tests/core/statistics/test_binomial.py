from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lissome.core.statistics import binomial


def test_log_factorial_is_the_sum_of_logs_on_both_sides_of_the_table():
    ks = np.arange(0, 200)
    expected = [math.lgamma(k + 1) for k in ks]
    np.testing.assert_allclose(binomial.log_factorial(ks), expected, rtol=1e-13, atol=1e-13)


@given(n=st.integers(1, 20_000), share=st.floats(0, 1), p=st.floats(1e-6, 1 - 1e-6))
def test_cdf_equals_scipy_far_into_the_tail(n, share, p):
    k = int(share * n)
    expected = stats.binom.cdf(k, n, p)
    assert binomial.cdf(k, n, p) == pytest.approx(expected, rel=1e-7, abs=1e-250)


def test_cdf_at_the_edges():
    assert binomial.cdf(-1, 10, 0.5) == 0.0
    assert binomial.cdf(10, 10, 0.5) == 1.0
    assert binomial.cdf(3, 10, 0.0) == 1.0
    assert binomial.cdf(3, 10, 1.0) == 0.0


@given(n=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.sampled_from([0.9, 0.975, 0.99995]))
def test_clopper_pearson_equals_the_beta_quantiles(n, share, confidence):
    k = round(share * n)
    lower, upper = binomial.lower_rate(k, n, confidence), binomial.upper_rate(k, n, confidence)
    assert lower == pytest.approx(stats.beta.ppf(1 - confidence, k, n - k + 1) if k else 0.0, rel=1e-7)
    assert upper == pytest.approx(stats.beta.ppf(confidence, k + 1, n - k) if k < n else 1.0, rel=1e-7)


@given(n=st.integers(1, 3000), p=st.floats(1e-4, 1 - 1e-4))
def test_the_window_leaves_out_less_than_it_says(n, p):
    width = binomial.half_width(n * p * (1 - p), 1e-6)
    assert stats.binom.cdf(math.ceil(n * p - width) - 1, n, p) <= 1e-6
    assert stats.binom.sf(math.floor(n * p + width), n, p) <= 1e-6
