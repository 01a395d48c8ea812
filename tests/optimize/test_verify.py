"""The verdict's clauses, and what the test split is allowed to say."""

from __future__ import annotations

import numpy as np
import pytest

from lissome.core.cache import Cache
from lissome.core.contract import Contract
from lissome.core.measurement import Measurement
from lissome.core.statistics import certify_drop, drop_p_value
from lissome.optimize.verify import ROUNDS, Fresh, Tested, judge, record_use, rounds_needed, runs_for


def figure(name: str, value: float, unit: str, spread: float = 0.05, method: str = "measured", confidence: float = 0.95) -> Measurement:
    return Measurement(name, value, value * (1 - spread), value * (1 + spread), unit, 21, method, "m", confidence)  # type: ignore[arg-type]


def fresh(after: float, spread: float = 0.05, method: str = "measured") -> Fresh:
    original = (figure("latency_p50", 8.0, "ms"), figure("memory", 400, "MB"), figure("size", 90, "MB", 0))
    chosen = (figure("latency_p50", after, "ms", spread, method), figure("memory", 150, "MB"), figure("size", 24, "MB", 0))
    return Fresh(original, chosen, (figure("speedup_latency_p50", 8.0 / after, "x", spread),), "Quiet.")


def on_test(lost: int, gained: int, n: int, margin: float = 0.01) -> Tested:
    before, after = np.ones(n), np.ones(n)
    after[:lost], before[lost : lost + gained] = 0, 0
    score = figure("score", 90, "%")
    return Tested(certify_drop(before, after, margin, 0.95, True), score, score, 1)


def test_every_limit_kept_is_met():
    verdict = judge(Contract(max_drop="1%", latency="2x", memory="200MB", size="3x"), fresh(2.0), on_test(10, 8, 5000))
    assert verdict.status == "met"
    assert [clause.status for clause in verdict.clauses] == ["met"] * 4
    assert "n = 5,000 test examples, seen once" in verdict.clauses[0].sentence


@pytest.mark.parametrize(("after", "spread", "status"), [(3.8, 0.0, "met"), (3.8, 0.1, "not met"), (4.2, 0.0, "not met")])
def test_the_interval_not_the_point_must_keep_a_limit(after, spread, status):
    assert judge(Contract(latency="4ms"), fresh(after, spread), on_test(0, 0, 500)).status == status


def test_a_drop_over_the_limit_on_test_is_not_met_whatever_validation_said():
    verdict = judge(Contract(max_drop="1%"), fresh(1.0), on_test(100, 0, 5000))
    assert verdict.status == "not met"
    assert "measured 2.00" in verdict.summary


def test_too_few_examples_say_how_many_are_needed():
    verdict = judge(Contract(max_drop="1%"), fresh(1.0), on_test(6, 3, 600))
    assert verdict.clauses[0].status == "cannot certify"
    assert "too few to certify: about" in verdict.clauses[0].sentence
    needed = int(verdict.clauses[0].sentence.split("about ")[1].split()[0].replace(",", ""))
    assert drop_p_value(6 * needed // 600, 3 * needed // 600, needed, 0.01) <= 0.06


def test_an_estimate_cannot_satisfy_a_contract():
    original, chosen = (figure("energy", 9.0, "mJ", 0.0, "estimated"),), (figure("energy", 1.0, "mJ", 0.0, "estimated"),)
    verdict = judge(Contract(energy="5mJ"), Fresh(original, chosen, (), "Quiet."), on_test(0, 0, 500))
    assert verdict.status == "not met"
    assert "an estimate cannot satisfy a contract" in verdict.clauses[0].sentence


def test_too_few_repetitions_cannot_certify():
    """Three runs enclose the median with 75 %, whatever the figures look like."""
    original, chosen = (figure("memory", 400, "MB"),), (figure("memory", 100, "MB", 0.0, confidence=0.75),)
    verdict = judge(Contract(memory="200MB"), Fresh(original, chosen, (), "Quiet."), on_test(0, 0, 500))
    assert verdict.clauses[0].status == "cannot certify"
    assert "21 repetitions do not reach 0.95 confidence" in verdict.summary


def test_runs_for_a_level_enclose_the_median_that_often():
    assert [runs_for(level) for level in (0.5, 0.75, 0.95, 0.99)] == [2, 3, 6, 8]
    assert rounds_needed(Contract(latency="p95 10ms"), 8) * 8 >= 200
    assert rounds_needed(Contract(latency="2x"), 8, near=True) > rounds_needed(Contract(latency="2x"), 8) == ROUNDS


def test_an_unmeasured_quantity_cannot_be_certified():
    verdict = judge(Contract(energy="5mJ"), fresh(1.0), on_test(0, 0, 500))
    assert "no counter for it on this machine" in verdict.clauses[0].sentence


def test_the_ledger_counts_different_plans_once_each(tmp_path):
    cache = Cache(tmp_path)
    assert [record_use(cache, "t", "m", plan) for plan in ("a", "a", "b")] == [1, 1, 2]
    assert record_use(cache, "t", "other", "b") == 1


def test_of_1000_contracts_at_the_limit_at_most_5_percent_are_certified():
    """The whole decision, selection included: eight candidates whose true drop is exactly the limit, the one that looks best on validation is taken,
    and the test split judges it once. Choosing on validation must not make the verdict optimistic."""
    rng = np.random.default_rng(3)
    contracts, candidates, margin, certified = 1000, 8, 0.01, 0
    rates = [0.02, 0.01, 0.97]  # lost, gained, same: a true drop of exactly one point
    answers: dict[tuple[int, int], bool] = {}
    for _ in range(contracts):
        validation = rng.multinomial(2500, rates, size=candidates)
        best = int(np.argmin(validation[:, 0] - validation[:, 1]))
        test = rng.multinomial(5000, rates, size=candidates)[best]
        key = (int(test[0]), int(test[1]))
        if key not in answers:
            answers[key] = drop_p_value(*key, 5000, margin) <= 0.05
        certified += answers[key]
    noise = 3 * np.sqrt(contracts * 0.05 * 0.95)
    assert certified <= contracts * 0.05 + noise
    assert certified > 0.2 * contracts * 0.05, "the test must not be so timid that it certifies nothing"
