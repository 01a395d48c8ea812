from __future__ import annotations

import time

import pytest

from lissome.machine.interleave import interleave, measured, rate, speedup


def test_works_take_turns_and_have_equally_many_values():
    order = []
    taken = interleave({"a": lambda: (order.append("a"), time.sleep(0.005)), "b": lambda: (order.append("b"), time.sleep(0.005))}, 0.01, least=6)
    assert len(taken["a"]) == len(taken["b"]) >= 6
    rounds = "".join(order[4:])  # after two calls each to warm up
    assert rounds == "ab" * len(taken["a"])


def test_quick_works_are_repeated_within_a_round():
    calls = []
    taken = interleave({"quick": lambda: calls.append(1)}, 0.0, least=6, block_s=0.002)
    assert len(calls) > 20 * len(taken["quick"])
    assert max(taken["quick"]) < 0.002


def test_rounds_end_at_most():
    assert len(interleave({"a": lambda: None}, 60.0, least=2, most=7, block_s=1e-6)["a"]) == 7


def test_a_machine_too_busy_for_all_rounds_gets_six():
    assert len(interleave({"slow": lambda: time.sleep(0.01)}, 0.001, least=50)["slow"]) == 6


def test_nothing_to_time():
    assert interleave({}, 1.0) == {}


def test_rate_and_speedup_carry_n_and_interval():
    figure = rate("fp32_gemm", 2.0, [0.5, 0.4, 0.5, 0.5, 1.0, 0.5, 0.5], "GFLOP/s", "here")
    assert (figure.value, figure.n, figure.unit, figure.machine, figure.method) == (4.0, 7, "GFLOP/s", "here", "measured")
    assert figure.low <= 4.0 <= figure.high
    # A slow spell that covers a whole round falls on both works and does not touch the ratio.
    ratio = speedup([2, 2, 20, 2, 2, 2, 2], [1, 1, 10, 1, 1, 1, 1], "here")
    assert (ratio.value, ratio.low, ratio.high, ratio.unit) == (2.0, 2.0, 2.0, "x")


def test_few_repetitions_say_that_their_interval_is_worth_less():
    assert measured("t", [1, 2, 3], "ms", "here").confidence == pytest.approx(0.75)
    assert measured("t", list(range(1, 10)), "ms", "here").confidence == 0.95
