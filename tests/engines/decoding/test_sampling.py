import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lissome.core.errors import BadModel
from lissome.engines.decoding.sampling import Sampler, Sampling, drawn

logits = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30).map(lambda one: np.array(one, np.float32))


@settings(max_examples=60, deadline=None)
@given(logits, st.integers(1, 10), st.floats(0.05, 1), st.floats(0.01, 0.9), st.integers(0, 5))
def test_what_is_drawn_is_allowed_by_every_rule(given_, top_k, top_p, min_p, seed):
    token = Sampler(Sampling(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)).draw(given_)
    best = np.exp(np.sort(given_.astype(np.float64))[::-1][:top_k] / 0.8)
    kept, mine = best / best.sum(), np.exp(float(given_[token]) / 0.8) / best.sum()
    assert kept[-1] - 1e-6 <= mine and mine >= min_p * kept[0] - 1e-6
    assert kept[kept > mine + 1e-6].sum() < top_p + 1e-6


def test_no_temperature_takes_the_likeliest():
    assert Sampler(Sampling()).draw(np.array([0.0, 3.0, 2.0])) == 1


def test_the_same_seed_gives_the_same_draws_and_another_others():
    flat = np.zeros(1000, np.float32)
    first, again, other = ([sampler.draw(flat) for _ in range(5)] for sampler in (Sampler(Sampling(temperature=1, seed=s)) for s in (1, 1, 2)))
    assert first == again != other


def test_draws_have_the_probabilities_of_the_softmax():
    sampler, given_ = Sampler(Sampling(temperature=2.0)), np.array([0.0, 1.0, 2.0])
    counts = np.bincount([sampler.draw(given_) for _ in range(4000)], minlength=3) / 4000
    assert np.allclose(counts, np.exp(given_ / 2) / np.exp(given_ / 2).sum(), atol=0.03)


def test_what_was_said_becomes_less_likely():
    given_ = np.array([2.0, 1.9, -1.0])
    assert Sampler(Sampling(repetition_penalty=1.2)).draw(given_, [0, 0]) == 1
    assert np.array_equal(given_, [2.0, 1.9, -1.0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad):
    with pytest.raises(BadModel, match="its logits are not finite"):
        Sampler(Sampling()).draw(np.array([0.0, bad]))


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"min_p": 1.0}, {"repetition_penalty": 0.5}, {"beam": 3}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValidationError):
        Sampling(**wrong)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.05, 0.5, 0.95, 1.0]), st.sampled_from([None, 1e-4, 0.2]), st.sampled_from([None, 700, 5000]), st.floats(0.05, 3))
def test_what_may_be_drawn_of_a_large_vocabulary_is_what_sorting_it_says(seed, top_p, min_p, top_k, temperature):
    """Plainly: sorted, the fewest of the k likeliest that hold so much, of those the ones that are likely enough."""
    given_ = np.random.default_rng(seed).normal(0, 2, 3000).astype(np.float32)
    config = Sampling(temperature=temperature, top_p=top_p, min_p=min_p, top_k=top_k, seed=seed)
    best = np.argsort(-given_, kind="stable")[:top_k]
    weights = np.exp((given_[best].astype(np.float64) - given_.max()) / temperature)
    weights /= weights.sum()
    keep = (weights.cumsum() - weights < top_p) & (weights >= (min_p or 0) * weights[0])
    found, expected = Sampler(config).probabilities(given_), np.zeros(3000)
    expected[best[keep]] = weights[keep] / weights[keep].sum()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
    assert found[Sampler(config).draw(given_)] > 0


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_a_temperature_near_zero_is_the_likeliest(options):
    assert Sampler(Sampling(temperature=1e-300, **options)).draw(np.array([1.0, 3.0, 2.0])) == 1


def test_what_has_no_weight_is_never_drawn():
    class High:
        def random(self):
            return 1.0  # no generator says so; a product may be rounded up to it

    assert drawn(np.array([0.0, 0.3, 0.7, 0.0]), High()) == 2
    assert all(drawn(np.array([0.0, 1.0, 0.0]), np.random.default_rng(seed)) == 1 for seed in range(20))
