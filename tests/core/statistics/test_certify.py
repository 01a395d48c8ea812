from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput
from lissome.core.statistics import certify_drop, drop_p_value, examples_needed, more_examples


def scores(n: int, right: int, lost: int, gained: int) -> tuple[np.ndarray, np.ndarray]:
    original = (np.arange(n) < right).astype(float)
    candidate = original.copy()
    candidate[:lost] = 0
    candidate[n - gained :] = 1
    return original, candidate


def test_exact_scores_get_the_exact_test():
    original, candidate = scores(5840, 5400, 40, 22)
    found = certify_drop(original, candidate, 0.01, 0.95, exact=True)
    assert (found.lost, found.gained, found.n, found.method) == (40, 22, 5840, "exact paired test")
    assert found.drop == pytest.approx(18 / 5840)
    assert found.p_value == drop_p_value(40, 22, 5840, 0.01)
    assert found.certified
    assert found.low < found.drop < found.upper < 0.01


def test_real_scores_get_the_bootstrap():
    random = np.random.default_rng(0)
    original = random.uniform(0.3, 0.9, 800)
    found = certify_drop(original, original - random.normal(0.001, 0.02, 800), 0.01, 0.95, exact=False)
    assert found.method == "paired bootstrap"
    assert found.certified
    assert found.low < found.drop < found.upper < 0.01


@given(data=st.data(), relative=st.booleans(), margin=st.floats(0, 0.2), confidence=st.sampled_from([0.8, 0.95, 0.99]))
@settings(deadline=None, max_examples=60)
def test_certified_means_the_bound_is_within_the_margin(data, relative, margin, confidence):
    n = data.draw(st.integers(20, 900))
    right = data.draw(st.integers(1, n))
    lost, gained = data.draw(st.integers(0, min(right, 40))), data.draw(st.integers(0, min(n - right, 40)))
    found = certify_drop(*scores(n, right, lost, gained), margin, confidence, exact=True, relative=relative)
    assert found.certified == (found.upper <= margin + 1e-12)
    assert found.low <= found.drop + 1e-6
    assert found.drop <= found.upper + 1e-6


def test_relative_margin_is_stricter_for_a_weak_original():
    original, candidate = scores(3000, 1500, 30, 15)
    absolute = certify_drop(original, candidate, 0.01, 0.95, exact=True)
    relative = certify_drop(original, candidate, 0.01, 0.95, exact=True, relative=True)
    assert relative.drop == pytest.approx(2 * absolute.drop)
    assert relative.p_value > absolute.p_value
    assert absolute.certified
    assert not relative.certified


def test_same_seed_same_result():
    random = np.random.default_rng(1)
    original, candidate = random.uniform(0, 1, (2, 100))
    assert certify_drop(original, candidate, 0.01, 0.95, exact=False, seed=3) == certify_drop(original, candidate, 0.01, 0.95, exact=False, seed=3)


def test_booleans_and_integers_are_scores_too():
    original, candidate = scores(500, 450, 2, 1)
    assert certify_drop(original.astype(bool), candidate.astype(int), 0.05, 0.95, exact=True) == certify_drop(original, candidate, 0.05, 0.95, exact=True)


@pytest.mark.parametrize(
    ("original", "candidate", "text"),
    [
        ([1, 0], [1], r"shape \(2,\) and \(1,\) do not pair up"),
        ([[1, 0]], [[1, 0]], "do not pair up"),
        ([], [], "no test examples"),
        ([1, 0, 1], [1, float("nan"), 1], "the candidate's score of example 1 is nan"),
        ([1, float("inf")], [1, 1], "the original's score of example 1 is inf"),
        ([1, 0.5, 1], [1, 1, 1], r"the original's score of example 1 is 0\.5, but the task says"),
    ],
)
def test_bad_scores(original, candidate, text):
    with pytest.raises(BadInput, match=text):
        certify_drop(original, candidate, 0.01, 0.95, exact=True)


@pytest.mark.parametrize("margin", [-0.01, 1.0, 5.0, float("nan")])
def test_bad_margin(margin):
    with pytest.raises(BadInput, match=r"margin of .* out of range"):
        certify_drop([1, 0], [1, 0], margin, 0.95, exact=True)


def test_relative_to_an_original_that_is_always_wrong():
    with pytest.raises(BadInput, match="no example right"):
        certify_drop(np.zeros(10), np.zeros(10), 0.01, 0.95, exact=True, relative=True)


def test_more_examples_follow_the_observed_rates():
    found = certify_drop(*scores(500, 450, 5, 5), 0.01, 0.95, exact=True)
    assert not found.certified
    assert more_examples(found) == examples_needed(0.02, 0.0, 0.01, 0.95)


def test_more_examples_of_a_relative_margin_use_the_originals_score():
    found = certify_drop(*scores(1000, 500, 10, 10), 0.02, 0.95, exact=True, relative=True)
    assert more_examples(found) == examples_needed(0.02, 0.0, 0.01, 0.95)


def test_no_number_helps_when_the_observed_drop_is_too_large():
    assert more_examples(certify_drop(*scores(1000, 900, 30, 10), 0.01, 0.95, exact=True)) is None
    assert more_examples(certify_drop(*scores(1000, 900, 0, 0), 0.0, 0.95, exact=True)) is None


def test_more_examples_of_real_scores():
    random = np.random.default_rng(2)
    original = random.uniform(0.3, 0.7, 60)
    few = certify_drop(original, original - random.normal(0.0, 0.1, 60), 0.02, 0.95, exact=False)
    n = more_examples(few)
    assert n is not None
    original = random.uniform(0.3, 0.7, 2 * n)
    assert certify_drop(original, original - random.normal(0.0, 0.1, 2 * n), 0.02, 0.95, exact=False).certified
    same = certify_drop(np.full(20, 0.5), np.full(20, 0.5), 0.01, 0.95, exact=False)
    assert more_examples(same) == 299
