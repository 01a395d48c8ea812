from __future__ import annotations

import pytest

from lissome.report.changes import changes, duration, plan_word
from tests.report import manifests


def test_every_quantity_and_the_score_is_compared() -> None:
    found = {change.label: change.note for change in changes(manifests.met())}
    assert found == {
        "latency p50": "7.0x faster",
        "latency p95": "7.3x faster",
        "throughput": "7.0x more",
        "memory": "4.2x less",
        "size on disk": "3.9x smaller",
        "score, test split": "0.31 pt lower",
    }


def test_a_drop_below_zero_is_a_gain() -> None:
    base = manifests.met()
    better = base.model_copy(update={"drop": manifests.measured("drop", -0.2, 0.3, "pt")})
    assert changes(better)[-1].note == "0.20 pt higher"


def test_a_relative_drop_is_in_per_cent_of_the_original() -> None:
    base = manifests.met()
    relative = base.model_copy(update={"contract": base.contract.model_copy(update={"max_drop": "1%rel"})})
    assert changes(relative)[-1].note == "0.31 % lower"


def test_what_was_not_measured_is_a_dash() -> None:
    assert changes(manifests.infeasible())[-1].note == "–"
    assert plan_word(manifests.infeasible()) == "nearest"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (48, "48 s"), (187.4, "3 min 7 s"), (120, "2 min"), (3900, "1 h 5 min"), (float("nan"), "–")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
