from __future__ import annotations

import io
from pathlib import Path

import pytest

from lissome.core.errors import BadInput
from lissome.engines.reading import raw_inputs


def test_typed_and_from_a_file(tmp_path):
    (tmp_path / "texts").write_text("second\n\n  \nthird line\nfourth: ü", encoding="utf-8")
    assert raw_inputs(["first"], tmp_path / "texts") == ["first", "second", "third line", "fourth: ü"]
    assert raw_inputs(["only"], None) == ["only"]


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    assert raw_inputs([], Path("-")) == ["a", "b"]


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_nothing(tmp_path, content):
    (tmp_path / "texts").write_text(content)
    with pytest.raises(BadInput, match="there is nothing to predict") as error:
        raw_inputs([], tmp_path / "texts")
    assert "--input" in str(error.value)
    with pytest.raises(BadInput, match="--file FILE"):
        raw_inputs([], None)


def test_unreadable(tmp_path):
    with pytest.raises(BadInput) as error:
        raw_inputs([], tmp_path / "missing.txt")
    assert str(error.value).startswith(f"{tmp_path / 'missing.txt'}: the inputs cannot be read")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8 text, one input a line"):
        raw_inputs([], tmp_path / "binary")
    with pytest.raises(BadInput, match="cannot be read"):
        raw_inputs([], tmp_path)
