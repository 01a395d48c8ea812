"""Does a 95 % statement hold 95 % of the time? Drawn from known truths, with fixed seeds; the larger tables are in benchmarks/certification.py."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lissome.core.statistics import bootstrap_drop, calibrate, certify_drop, drop_p_value, median_interval, quantile_interval, ratio_interval

from .simulate import share_certified


def noise(share: float, repetitions: int) -> float:
    """Three standard deviations of a simulated share."""
    return 3 * float(np.sqrt(share * (1 - share) / repetitions))


@pytest.mark.parametrize(("n", "discordance"), [(300, 0.012), (300, 0.05), (1000, 0.02), (1000, 0.10), (3000, 0.03), (6000, 0.02), (6000, 0.05)])
def test_a_drop_at_the_limit_is_certified_in_at_most_5_percent(n, discordance):
    share = share_certified(n, discordance, drop=0.01, margin=0.01, contracts=1000, seed=n)
    assert share <= 0.05 + noise(0.05, 1000)
    if n >= 1000:
        assert share >= 0.02  # careful, not timid


def test_a_drop_beyond_the_limit_is_certified_less_often_still():
    assert share_certified(2000, 0.04, drop=0.015, margin=0.01, contracts=1000, seed=1) <= 0.01


def test_power():
    assert share_certified(6000, 0.02, drop=0.003, margin=0.01, contracts=500, seed=2) >= 0.95
    assert share_certified(1000, 0.005, drop=0.0, margin=0.01, contracts=500, seed=2) >= 0.9


@pytest.mark.parametrize(("n", "margin", "confidence"), [(40, 0.1, 0.95), (100, 0.03, 0.95), (60, 0.05, 0.8)])
def test_size_by_enumeration_never_exceeds_the_level(n, margin, confidence):
    """No simulation: the probability of certifying is summed over every outcome, for 300 truths on the boundary of the null and 300 inside it."""
    certified = []
    for gained in range(n + 1):
        low, high = -1, n - gained  # the p-value rises with lost, so the certified outcomes are lost <= low
        while low < high:
            middle = (low + high + 1) // 2
            inside = middle < 0 or drop_p_value(middle, gained, n, margin, confidence) <= 1 - confidence
            low, high = (middle, high) if inside else (low, middle - 1)
        certified.append(low)
    gains = np.arange(n + 1)
    for drop in (margin, 1.3 * margin):
        for gained_rate in np.linspace(0, (1 - drop) / 2, 300):
            columns = stats.binom.pmf(gains, n, gained_rate)
            below = stats.binom.cdf(certified, n - gains, (gained_rate + drop) / (1 - gained_rate))
            assert (columns * below).sum() <= 1 - confidence + 1e-9


@pytest.mark.parametrize(("n", "score", "lost_share"), [(500, 0.9, 0.03), (2000, 0.6, 0.02)])
@pytest.mark.parametrize("exact", [True, False])
def test_a_relative_drop_at_the_limit(n, score, lost_share, exact):
    """0/1 scores whose true drop is exactly 2 % of the original's score: both the exact and the bootstrap test hold their level."""
    margin, contracts = 0.02, 200
    gained_share = lost_share * score - margin * score  # p01 = p10 - margin * score
    cells = np.array([score * (1 - lost_share), score * lost_share, gained_share, 1 - score - gained_share])
    pairs = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=float)
    random, certified = np.random.default_rng(n), 0
    for seed in range(contracts):
        original, candidate = np.repeat(pairs, random.multinomial(n, cells), axis=0).T
        if exact:
            certified += certify_drop(original, candidate, margin, 0.95, exact=True, relative=True).certified
        else:
            certified += bootstrap_drop(original, candidate, margin, 0.95, seed, relative=True, draws=999).p_value <= 0.05
    assert certified / contracts <= 0.05 + noise(0.05, contracts)


SHAPES = {
    "normal": lambda random, n: random.normal(0.01, 0.05, n),
    "skewed": lambda random, n: random.exponential(0.05, n) - 0.04,
    "skewed to gains": lambda random, n: 0.06 - random.exponential(0.05, n),
    "rare and small": lambda random, n: (random.random(n) < 0.05) * random.uniform(-0.1, 0.5, n),
    "rare and total": lambda random, n: (random.random(n) < 0.01) * 1.0,
}
MEANS = {"normal": 0.01, "skewed": 0.01, "skewed to gains": 0.01, "rare and small": 0.01, "rare and total": 0.01}


@pytest.mark.parametrize("n", [50, 300, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_bootstrap_upper_bound_covers(n, shape):
    random, repetitions, covered = np.random.default_rng(n), 200, 0
    for seed in range(repetitions):
        drops = SHAPES[shape](random, n)
        found = bootstrap_drop(np.full(n, 0.9), 0.9 - drops, 0.01, 0.95, seed, score_range=(0.0, 1.0), draws=499)
        covered += found.high >= MEANS[shape]
    assert covered / repetitions >= 0.95 - noise(0.95, repetitions)


@pytest.mark.parametrize("n", [6, 11, 40])
def test_median_interval_covers(n):
    random, repetitions = np.random.default_rng(n), 3000
    truth = np.log(2.0)
    covered = np.mean([low <= truth <= high for _, low, high in (median_interval(random.exponential(1, n)) for _ in range(repetitions))])
    assert covered >= 0.95 - noise(0.95, repetitions)


def test_p95_interval_covers():
    random, repetitions = np.random.default_rng(7), 2000
    truth = -np.log(0.05)
    covered = np.mean([low <= truth <= high for _, low, high in (quantile_interval(random.exponential(1, 200), 0.95) for _ in range(repetitions))])
    assert covered >= 0.95 - noise(0.95, repetitions)


def test_ratio_interval_covers_under_slow_spells():
    random, repetitions, covered = np.random.default_rng(8), 2000, 0
    for _ in range(repetitions):
        spell = random.choice([1.0, 1.3, 3.0], 15)
        a, b = 3.0 * spell * random.lognormal(0, 0.05, 15), spell * random.lognormal(0, 0.05, 15)
        _, low, high = ratio_interval(a, b)
        covered += low <= 3.0 <= high
    assert covered / repetitions >= 0.95 - noise(0.95, repetitions)


@pytest.mark.parametrize("binary", [True, False])
def test_learn_then_test_never_exceeds_delta(binary):
    """Twelve settings of rising risk, one of them exactly at alpha; correlated losses, as with a real knob."""
    alpha, delta, repetitions, n = 0.05, 0.1, 1500, 400
    risks = np.array([0.01, 0.02, 0.03, 0.04, 0.045, 0.0500001, 0.055, 0.06, 0.08, 0.1, 0.15, 0.2])
    random, wrong, found = np.random.default_rng(9), 0, 0
    for _ in range(repetitions):
        uniform = random.random(n)
        losses = (uniform < risks[:, None]).astype(float)
        if not binary:
            losses = np.where(uniform < 2 * risks[:, None], random.random(n), 0.0)
        knob = calibrate(losses, alpha, delta)
        wrong += knob is not None and risks[knob] > alpha
        found += knob is not None
    assert wrong / repetitions <= delta + noise(delta, repetitions)
    assert found / repetitions > 0.9
