from __future__ import annotations

import dataclasses

import pytest

from lissome.core.errors import BadInput, Incomparable, MachineMismatch
from lissome.core.measurement import Measurement, check_comparable, counted

LATENCY = Measurement("latency_p50", 1.063, 1.041, 1.092, "ms", 30, "measured", "box-1")


def test_it_prints_its_interval_and_unit():
    assert str(LATENCY) == "1.06 [1.04, 1.09] ms"
    assert str(counted("size", 41.0, "MB", "box-1")) == "41.0 MB"


def test_an_estimate_says_so_wherever_it_is_shown():
    assert str(dataclasses.replace(LATENCY, method="estimated")) == "1.06 [1.04, 1.09] ms (estimated)"
    assert str(dataclasses.replace(LATENCY, low=1.063, high=1.063, method="estimated")) == "1.06 ms (estimated)"


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LATENCY.value = 0.1


def test_two_of_one_kind_compare():
    check_comparable(LATENCY, dataclasses.replace(LATENCY, value=2.0, low=1.9, high=2.1, n=7, confidence=0.9))


def test_two_machines_do_not_compare():
    with pytest.raises(MachineMismatch) as caught:
        check_comparable(LATENCY, dataclasses.replace(LATENCY, machine="box-2"))
    text = str(caught.value)
    assert "box-1" in text
    assert "box-2" in text
    assert "measure both again here" in text


@pytest.mark.parametrize(("part", "value"), [("name", "latency_p95"), ("unit", "s"), ("method", "estimated")])
def test_different_kinds_do_not_compare(part, value):
    with pytest.raises(Incomparable, match=f"their {part} differs") as caught:
        check_comparable(LATENCY, dataclasses.replace(LATENCY, **{part: value}))
    assert not isinstance(caught.value, MachineMismatch)
    assert isinstance(caught.value, BadInput)
    assert caught.value.exit_code == 2
