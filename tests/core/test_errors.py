from __future__ import annotations

import pytest

from lissome.core import errors


def test_an_error_is_laid_out_as_what_where_expected_do():
    error = errors.BadConfig("unknown key", where="task.yaml:7", expected="kind", do="remove it")
    assert str(error) == "task.yaml:7: unknown key\n  Expected: kind\n  Do this:  remove it"
    assert str(errors.BadModel("gone")) == "gone"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.BadTask, 2),
        (errors.MachineMismatch, 2),
        (errors.ContractNotMet, 3),
        (errors.ParityFailed, 3),
        (errors.Unreachable, 4),
        (errors.Interrupted, 130),
    ],
)
def test_exit_codes(kind, code):
    assert kind("x").exit_code == code
    assert isinstance(kind("x"), errors.LissomeError)


def test_a_missing_extra_names_the_command():
    error = errors.MissingExtra("openvino", "openvino", "This engine")
    assert 'pip install "lissome[openvino]"' in str(error)
    assert error.exit_code == 4


def test_closest():
    assert errors.closest("sentimnt", ["id", "text", "sentiment"]) == ' Did you mean "sentiment"?'
    assert errors.closest("zebra", ["id", "text"]) == ""
