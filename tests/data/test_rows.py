"""Reading tables: every way a file can be wrong is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lissome.core.errors import BadTask
from lissome.data.rows import read_rows


def test_the_three_kinds_read_alike(write) -> None:
    csv = read_rows(write("a.csv", 'text,label\n"a, b",1\n"two\nlines",0\n'), "t")
    jsonl = read_rows(write("a.jsonl", '{"text": "a, b", "label": 1}\n\n{"label": 0, "text": "two\\nlines"}\n'), "t")
    assert csv.columns == jsonl.columns == ("text", "label")
    assert csv.cells == jsonl.cells == [("a, b", "1"), ("two\nlines", "0")]
    assert csv.lines == [2, 4]
    assert jsonl.lines == [1, 3]


def test_a_lone_quotation_mark_in_a_tsv_swallows_nothing(write) -> None:
    rows = read_rows(write("a.tsv", 'text\tlabel\n"quoted start\t1\nnext\t0\n'), "t")
    assert rows.column("text") == ['"quoted start', "next"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\na,b\n")
    assert read_rows(path, "t").columns == ("text", "label")


def test_a_long_cell_is_read(write) -> None:
    assert len(read_rows(write("a.csv", "text\n" + "x" * 200_000 + "\n"), "t").cells[0][0]) == 200_000


@pytest.mark.parametrize(
    ("name", "text", "where", "message"),
    [
        ("a.csv", "", "a.csv", "it has no rows"),
        ("a.csv", "text,label\n", "a.csv", "it has no rows"),
        ("a.jsonl", "\n\n", "a.jsonl", "it has no rows"),
        ("a.csv", "text,label\na,b\nc\n", "a.csv:3", "this row has 1 cells, the header has 2"),
        ("a.csv", "text,label\na,b,c\n", "a.csv:2", "this row has 3 cells, the header has 2"),
        ("a.csv", 'text,label\n"a"b,c\n', "a.csv:2", "not valid delimited text"),
        ("a.csv", 'text,label\n"a,c\n', "a.csv:2", "not valid delimited text"),
        ("a.csv", "text,text\na,b\n", "a.csv:1", 'the column "text" is there twice'),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl:2", "not valid JSON"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl:2", "not a JSON object"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "a.jsonl:2", 'the key "label" is missing'),
    ],
)
def test_what_is_wrong_and_where(write, name: str, text: str, where: str, message: str) -> None:
    path = write(name, text)
    with pytest.raises(BadTask, match=message) as caught:
        read_rows(path, "task.yaml:2")
    assert f"{path.parent}/{where}: " in str(caught.value)


def test_a_missing_file_points_at_the_line_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(BadTask, match=r"task.yaml:2: the file .*nowhere.csv. does not exist") as caught:
        read_rows(tmp_path / "nowhere.csv", "task.yaml:2")
    assert "relative to the YAML file" in str(caught.value)


def test_an_unknown_suffix(write) -> None:
    with pytest.raises(BadTask, match=r'task.yaml:2: "a.xlsx" is of no known kind'):
        read_rows(write("a.xlsx", "x"), "task.yaml:2")


def test_the_wrong_encoding_says_which_to_try(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    with pytest.raises(BadTask, match="0xe9 is not utf-8 text") as caught:
        read_rows(path, "t")
    assert "encoding: latin-1" in str(caught.value)
    assert read_rows(path, "t", encoding="latin-1").cells == [("café", "1")]
    with pytest.raises(BadTask, match='no encoding "klingon"'):
        read_rows(path, "t", encoding="klingon")
