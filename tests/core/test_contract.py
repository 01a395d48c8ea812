from __future__ import annotations

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.contract import Contract, parse_duration, parse_limit


@pytest.mark.parametrize(
    ("quantity", "text", "name", "bound", "unit", "relative"),
    [
        ("max_drop", "1%", "max_drop", 1.0, "pt", False),
        ("max_drop", "0.5pt", "max_drop", 0.5, "pt", False),
        ("max_drop", "<= 2 pts", "max_drop", 2.0, "pt", False),
        ("max_drop", "0%", "max_drop", 0.0, "pt", False),
        ("max_drop", "1%rel", "max_drop", 1.0, "pt", True),
        ("max_drop", "1 % relative", "max_drop", 1.0, "pt", True),
        ("latency", "10ms", "latency_p50", 10.0, "ms", False),
        ("latency", "p95 10ms", "latency_p95", 10.0, "ms", False),
        ("latency", "P95: 0.2 s", "latency_p95", 200.0, "ms", False),
        ("latency", "250us", "latency_p50", 0.25, "ms", False),
        ("latency", "3x", "latency_p50", 3.0, "ms", True),
        ("latency", "p95 1.5x", "latency_p95", 1.5, "ms", True),
        ("memory", "60MB", "memory", 60.0, "MB", False),
        ("memory", "4GiB", "memory", 4294.967296, "MB", False),
        ("size", "4x", "size", 4.0, "MB", True),
        ("size", "512 KiB", "size", 0.524288, "MB", False),
        ("energy", "3mJ", "energy", 3.0, "mJ", False),
        ("energy", "0.002J", "energy", 2.0, "mJ", False),
    ],
)
def test_limits_as_users_write_them(quantity, text, name, bound, unit, relative):
    limit = parse_limit(quantity, text)
    assert (limit.name, limit.unit, limit.relative) == (name, unit, relative)
    assert limit.bound == pytest.approx(bound)


@pytest.mark.parametrize(
    ("quantity", "text", "says"),
    [
        ("latency", "0ms", "must be above zero"),
        ("latency", "-3ms", "must be above zero"),
        ("latency", "10", "is not a limit on latency"),
        ("latency", "fast", "p95 10ms"),
        ("latency", "10 parsecs", "is not a limit on latency"),
        ("latency", "0x", "must be above zero"),
        ("latency", "nanms", "is not a limit"),
        ("latency", "", "is not a limit"),
        ("max_drop", "-1%", "between 0 and 100 points"),
        ("max_drop", "100%", "between 0 and 100 points"),
        ("max_drop", "1", '"1%" or "1pt"'),
        ("max_drop", "2x", "is not a limit on max_drop"),
        ("memory", "60ms", "is not a limit on memory"),
        ("size", "inf MB", "is not a limit"),
        ("energy", "3W", "3mJ"),
        ("latency", "1e400ms", "must be a finite number"),
        ("latency", "1e308s", "must be a finite number"),
        ("size", "1e999x", "must be a finite number"),
        ("max_drop", "1e400%", "between 0 and 100 points"),
    ],
)
def test_bad_limits_say_how_to_write_one(quantity, text, says):
    with pytest.raises(ValueError, match="write") as caught:
        parse_limit(quantity, text)
    assert says in str(caught.value)
    assert f'"{text}"' in str(caught.value)


@given(quantity=st.sampled_from(["max_drop", "latency", "memory", "size", "energy"]), text=st.text(max_size=20))
def test_any_text_is_a_limit_or_a_value_error(quantity, text):
    try:
        limit = parse_limit(quantity, text)
    except ValueError:
        return
    assert limit.bound >= 0


@given(bound=st.floats(0.001, 1e6).map(lambda x: round(x, 3)), unit=st.sampled_from(["ms", "us", "s", "x"]))
def test_a_limit_reads_its_own_figures(bound, unit):
    limit = parse_limit("latency", f"{bound}{unit}")
    assert limit.relative == (unit == "x")
    assert limit.bound == pytest.approx(bound * {"ms": 1, "us": 1e-3, "s": 1e3, "x": 1}[unit])


def test_a_limit_prints_as_a_condition():
    assert str(parse_limit("max_drop", "1%")) == "accuracy drop <= 1 pt"
    assert str(parse_limit("max_drop", "1%rel")) == "accuracy drop <= 1 % of the original score"
    assert str(parse_limit("latency", "p95 3ms")) == "latency p95 <= 3 ms"
    assert str(parse_limit("size", "4x")) == "size at least 4x below the original"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20min", 1200), ("1.5h", 5400), ("2 m", 120), ("30 sec", 30)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-3s", "20", "soon", "3 weeks", "9" * 400 + "s", "9" * 308 + "h"])
def test_bad_durations(text):
    with pytest.raises(ValueError, match="20min"):
        parse_duration(text)


def test_a_contract_lists_its_limits_accuracy_first():
    contract = Contract(latency="2x", max_drop="1%", memory="60MB", confidence="99%", spend="20min", ram="4GB")
    assert [limit.quantity for limit in contract.limits()] == ["max_drop", "latency", "memory"]
    assert contract.limit("size") is None
    assert contract.limit("latency").bound == 2
    assert (contract.level, contract.spend_seconds, contract.ram_mb) == (0.99, 1200, 4000)
    assert Contract(size="1MB").spend_seconds is None
    assert Contract(size="1MB").ram_mb is None


@given(drop=st.sampled_from([None, "1%", "0.5pt", "2%rel"]), latency=st.sampled_from(["10ms", "p95 3x"]), level=st.floats(50, 99.9).map(lambda x: round(x, 1)))
def test_a_contract_survives_json(drop, latency, level):
    contract = Contract(max_drop=drop, latency=latency, confidence=f"{level}%")
    assert Contract.model_validate_json(contract.model_dump_json()) == contract
    assert contract.level == pytest.approx(level / 100)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "at least one limit"),
        ({"latency": "0ms"}, "must be above zero"),
        ({"max_drop": "-1%"}, "between 0 and 100"),
        ({"size": "1MB", "confidence": "95"}, "is not a confidence"),
        ({"size": "1MB", "confidence": "49%"}, "is not a confidence"),
        ({"size": "1MB", "confidence": "100%"}, "is not a confidence"),
        ({"size": "1MB", "confidence": "0.95"}, "such as"),
        ({"size": "1MB", "batch": 0}, "at least one example"),
        ({"size": "1MB", "spend": "0min"}, "is not a duration"),
        ({"size": "1MB", "ram": "2x"}, "is not an amount of memory"),
        ({"size": "1MB", "ram": "1e400GB"}, "must be a finite number"),
        ({"size": "1MB", "latencyy": "3ms"}, "Extra inputs"),
    ],
)
def test_bad_contracts(fields, says):
    with pytest.raises(pydantic.ValidationError, match=says):
        Contract(**fields)


def test_a_contract_cannot_be_changed():
    contract = Contract(latency="3ms")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        contract.latency = "300ms"
