from __future__ import annotations

from pathlib import Path

import pytest

from lissome.core.errors import BadInput
from lissome.report.markdown import markdown_table, update_marked_block


def test_a_table_aligns_numbers_right_and_escapes_pipes() -> None:
    text = markdown_table([("torch | fp32", 7.47), ("openvino", "1.06")], ["engine", "ms"])
    assert text.splitlines() == [
        "| engine        |   ms |",
        "|---------------|-----:|",
        "| torch \\| fp32 | 7.47 |",
        "| openvino      | 1.06 |",
    ]


def test_a_line_break_does_not_end_the_row() -> None:
    assert len(markdown_table([("a\nb", 1)], ["x", "y"]).splitlines()) == 3


def test_a_table_without_rows_is_its_head() -> None:
    assert markdown_table([], ["a", "b"]).splitlines()[0] == "| a   | b   |"


def test_a_row_of_another_length_is_an_error() -> None:
    with pytest.raises(BadInput, match="row 1 has 1 cells, the table has 2"):
        markdown_table([(1, 2), (3,)], ["a", "b"])


def test_a_marked_block_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- encoder -->\nold\n<!-- /encoder -->\nafter\n<!-- other -->\nkept\n<!-- /other -->\n")
    assert update_marked_block(page, "encoder", "| new |") is True
    text = page.read_text()
    assert text == "before\n<!-- encoder -->\n\n| new |\n\n<!-- /encoder -->\nafter\n<!-- other -->\nkept\n<!-- /other -->\n"
    assert update_marked_block(page, "encoder", "| new |") is False


@pytest.mark.parametrize(
    "text",
    ["nothing here", "<!-- a --> only", "<!-- /a --> <!-- a -->", "<!-- a --> <!-- a --> <!-- /a -->"],
)
def test_missing_doubled_or_reversed_markers_are_an_error_and_change_nothing(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(BadInput, match=r"no block named a[\s\S]*add the two markers") as caught:
        update_marked_block(page, "a", "new")
    assert str(page) in str(caught.value)
    assert page.read_text() == text


def test_a_page_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read it"):
        update_marked_block(tmp_path / "none.md", "a", "new")
