from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.contract import Contract, parse_limit
from lissome.core.measurement import Measurement, counted
from lissome.report import figures
from tests.report import manifests
from tests.report.manifests import measured


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.4712, "7.47"),
        (0.0921, "0.0921"),
        (402.4, "402"),
        (2156.0, "2,156"),
        (0.0, "0"),
        (-0.12, "−0.120"),
        (None, figures.DASH),
        (math.nan, figures.DASH),
        (math.inf, figures.DASH),
    ],
)
def test_numbers_have_three_digits_and_unknown_ones_are_a_dash(value: float | None, text: str) -> None:
    assert figures.number(value) == text


@given(st.floats(-1e9, 1e9))
def test_a_number_is_never_written_as_minus_zero(value: float) -> None:
    text = figures.number(value)
    assert any(digit in text for digit in "123456789") or "−" not in text


@given(st.floats(1e-4, 1e8))
def test_the_text_of_a_number_is_within_half_a_percent_of_it(value: float) -> None:
    assert float(figures.number(value).replace(",", "")) == pytest.approx(value, rel=0.006)


def test_an_interval_is_shown_only_where_there_is_one() -> None:
    assert figures.full(measured("latency_p50", 1.06, 0.03, "ms")) == "1.06 ms [1.03, 1.09]"
    assert figures.full(counted("size", 23.4, "MB", "m")) == "23.4 MB"
    assert figures.full(measured("memory", math.nan, 0, "MB")) == figures.DASH
    assert figures.full(None) == figures.DASH


def test_an_estimate_says_so() -> None:
    assert "(estimated)" in figures.full(measured("energy", 3.0, 0.5, "mJ", method="estimated"))


def test_ratios_say_which_way() -> None:
    fast, slow = measured("latency_p50", 1.0, 0.1, "ms"), measured("latency_p50", 7.0, 0.1, "ms")
    assert figures.ratio_words(slow, fast) == "7.0x faster"
    assert figures.ratio_words(fast, slow) == "7.0x slower"
    assert figures.ratio_words(fast, fast) == "the same"
    few, many = measured("throughput", 10, 1, "/s"), measured("throughput", 25, 1, "/s")
    assert figures.ratio_words(few, many) == "2.5x more"


def test_no_ratio_between_machines_methods_or_missing_figures() -> None:
    here = measured("latency_p50", 1.0, 0.1, "ms")
    there = Measurement("latency_p50", 7.0, 6.9, 7.1, "ms", 40, "measured", "another machine")
    estimated = measured("latency_p50", 7.0, 0.1, "ms", method="estimated")
    for other in (there, estimated, None, measured("latency_p50", math.nan, 0, "ms"), measured("latency_p50", 0.0, 0, "ms")):
        assert figures.ratio_words(other, here) == figures.DASH


def test_relative_limits_become_units() -> None:
    manifest = manifests.met()
    assert figures.bound(parse_limit("latency", "2x"), manifest) == pytest.approx(7.47 / 2)
    assert figures.bound(parse_limit("latency", "p95 10ms"), manifest) == 10
    assert figures.bound(parse_limit("max_drop", "1%rel"), manifest) == pytest.approx(0.8412)
    bare = manifest.model_copy(update={"tried": manifest.tried[1:], "original_score": None})
    assert figures.bound(parse_limit("latency", "2x"), bare) is None
    assert figures.bound(parse_limit("max_drop", "1%rel"), bare) is None


def test_a_score_given_as_a_share_becomes_points() -> None:
    assert figures.points(measured("score", 0.84, 0.01, "")) == pytest.approx(84)


def test_every_option_has_a_heading_and_the_plan_is_the_chosen_one() -> None:
    for make in manifests.ALL.values():
        manifest = make()
        groups = [figures.group(row, manifest) for row in manifest.tried]
        assert set(groups) <= set(figures.OPTION_GROUPS)
        assert groups.count("chosen") == 1


def test_a_plan_that_is_the_original_finds_its_row() -> None:
    base = manifests.met()
    kept = base.model_copy(update={"plan": base.tried[0].option, "tried": base.tried[:1]})
    assert figures.plan_row(kept) is kept.tried[0]
    chosen = manifests.kept_original()
    assert figures.original_row(chosen) is figures.plan_row(chosen) is chosen.tried[0]
    assert figures.plan_row(kept.model_copy(update={"tried": base.tried[1:2]})) is None


def test_a_clause_finds_its_limit_by_text_or_by_figure() -> None:
    manifest = manifests.met()
    for clause in manifest.verdict.clauses:
        found = figures.limit_of(clause, manifest)
        assert found is not None
        assert str(found) == clause.limit
    renamed = manifest.verdict.clauses[2].model_copy(update={"limit": "memory"})
    assert figures.limit_of(renamed, manifest) == Contract(memory="200MB").limits()[0]


def test_an_unknown_quantity_is_named_by_itself() -> None:
    assert figures.quantity("wake_ups").label == "wake ups"
    assert figures.quantity("latency_p50_batch32").gain == "faster"


@pytest.mark.parametrize(("value", "text"), [(0.2213, "0.22"), (0.0061, "0.0061"), (3.2e-7, "3e−7"), (0.0, "0"), (None, "–"), (math.nan, "–")])
def test_relative_differences_are_short(value: float | None, text: str) -> None:
    assert figures.small(value) == text
