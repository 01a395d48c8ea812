"""Tables in docs: a Markdown table, and replacing a marked block of a page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lissome.core.errors import BadInput


def markdown_table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """A GitHub-style table; columns whose cells all look like numbers are right-aligned.

    Raises BadInput when a row has another length than the headers.
    """
    texts = [[_cell(c) for c in row] for row in rows]
    for i, row in enumerate(texts):
        if len(row) != len(headers):
            raise BadInput(f"row {i} has {len(row)} cells, the table has {len(headers)} columns")
    heads = [_cell(h) for h in headers]
    right = [bool(texts) and all(re.match(r"[-−–+~]?\d|[-–]$", row[i]) for row in texts) for i in range(len(heads))]
    widths = [max(3, len(h), *(len(row[i]) for row in texts)) for i, h in enumerate(heads)]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)) + " |"

    rule = "|" + "|".join(("-" * (w + 1) + ":") if r else "-" * (w + 2) for w, r in zip(widths, right, strict=True)) + "|"
    return "\n".join([line(heads), rule, *map(line, texts)])


def _cell(content: object) -> str:
    """One cell's text; a pipe or a line break would end the cell."""
    return str(content).replace("|", "\\|").replace("\r\n", " ").replace("\n", " ").strip()


def update_marked_block(path: Path, name: str, text: str) -> bool:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->` in `path`; return whether the file changed.

    Raises BadInput when the file is missing or does not hold each marker exactly once, in order.
    """
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    try:
        page = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot read it: {error.strerror}", where=str(path)) from error
    if page.count(opening) != 1 or page.count(closing) != 1 or page.index(opening) > page.index(closing):
        raise BadInput(
            f"the page has no block named {name}",
            where=str(path),
            expected=f"one line {opening} and, below it, one line {closing}",
            do="add the two markers where the text should go",
        )
    before, rest = page.split(opening)
    after = rest.split(closing)[1]
    new = f"{before}{opening}\n\n{text.strip()}\n\n{closing}{after}"
    if new == page:
        return False
    path.write_text(new, encoding="utf-8")
    return True
