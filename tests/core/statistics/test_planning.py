from __future__ import annotations

import numpy as np
import pytest

from lissome.core.errors import BadInput
from lissome.core.statistics import drop_p_value, examples_needed

from .simulate import share_certified


@pytest.mark.parametrize(("margin", "confidence"), [(0.01, 0.95), (0.005, 0.95), (0.05, 0.9), (0.02, 0.99)])
def test_without_discordance_it_is_the_smallest_n_that_certifies(margin, confidence):
    n = examples_needed(0, 0, margin, confidence)
    assert drop_p_value(0, 0, n, margin, confidence) <= 1 - confidence < drop_p_value(0, 0, n - 1, margin, confidence)


def test_rule_of_three():
    assert examples_needed(0, 0, 0.01, 0.95) == 299


@pytest.mark.parametrize(("discordance", "drop"), [(0.02, 0.0), (0.03, 0.003), (0.01, 0.004)])
def test_the_exact_test_has_the_promised_power(discordance, drop):
    n = examples_needed(discordance, drop, 0.01, 0.95)
    share = share_certified(n, discordance, drop, margin=0.01, contracts=600, seed=n)
    noise = 3 * np.sqrt(0.8 * 0.2 / 600)
    assert share >= 0.8 - 0.02 - noise
    fewer = share_certified(int(0.8 * n), discordance, drop, margin=0.01, contracts=600, seed=n)
    assert fewer <= 0.8 + noise


def test_more_discordance_more_drop_less_margin_all_need_more():
    assert examples_needed(0.05, 0, 0.01, 0.95) > examples_needed(0.02, 0, 0.01, 0.95)
    assert examples_needed(0.05, 0.005, 0.01, 0.95) > examples_needed(0.05, 0, 0.01, 0.95)
    assert examples_needed(0.05, 0, 0.005, 0.95) > examples_needed(0.05, 0, 0.01, 0.95)
    assert examples_needed(0.05, 0, 0.01, 0.99) > examples_needed(0.05, 0, 0.01, 0.95)
    assert examples_needed(0.05, 0, 0.01, 0.95, power=0.95) > examples_needed(0.05, 0, 0.01, 0.95)


def test_a_better_candidate_can_certify_no_drop_at_all():
    assert 500 < examples_needed(0.02, -0.01, 0.0, 0.95) < 3000


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ((0.02, 0.01, 0.01, 0.95), "no number of examples"),
        ((0.01, 0.02, 0.05, 0.95), "is impossible"),
        ((0.5, 0.0099999, 0.01, 0.95), "would be needed"),
        ((0.0, 0.0, 1e-9, 0.95), "would be needed"),
        ((0.02, 0.0, 0.01, 0.5), "out of range"),
    ],
)
def test_impossible_plans(case, text):
    with pytest.raises(BadInput, match=text):
        examples_needed(*case)
