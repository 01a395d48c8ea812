"""Read CSV, TSV and JSONL files into rows of text, with the line of each row for errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lissome.core.errors import BadTask, closest

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
LONGEST_CELL = 1 << 24
"""Characters; the csv module's own limit of 131,072 is less than some documents have."""
JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Rows:
    """A table: column names, one tuple of cells per row, and the 1-based line each row ends on."""

    path: Path
    columns: tuple[str, ...]
    cells: list[tuple[str, ...]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.cells)

    def column(self, name: str) -> list[str]:
        """The cells of one column; the name must exist (see require)."""
        at = self.columns.index(name)
        return [row[at] for row in self.cells]

    def require(self, name: str, role: str, where: str) -> None:
        """Raise BadTask unless the column exists. where: file:line of the key that names it."""
        if name not in self.columns:
            raise BadTask(
                f'{role} column "{name}" is not in {self.path.name}.{closest(name, self.columns)}',
                where=where,
                expected=f"one of the columns {', '.join(self.columns)}",
                do=f"correct the name, or check that {self.path.name} has a header line",
            )


def read_rows(path: Path, where: str, delimiter: str | None = None, encoding: str = "utf-8") -> Rows:
    """Read a file by its suffix: .csv, .tsv/.txt (tab-separated) with a header line, or .jsonl (one object a line).

    where: what named the file (`task.yaml:2`), for a missing one. Raises BadTask for a missing, empty, ragged or wrongly encoded file.
    """
    suffix = path.suffix.lower()
    if suffix not in DELIMITERS and suffix not in JSON_LINES:
        raise BadTask(f'"{path.name}" is of no known kind', where=where, expected="a .csv, .tsv, .txt (tab-separated) or .jsonl file")
    try:
        with path.open(encoding="utf-8-sig" if encoding.lower().replace("-", "") == "utf8" else encoding, newline="") as file:
            rows = _json_rows(path, file) if suffix in JSON_LINES else _delimited(path, file, delimiter or DELIMITERS[suffix])
    except FileNotFoundError as error:
        raise BadTask(f'the file "{path}" does not exist', where=where, do="paths are relative to the YAML file: correct it, or put the file there") from error
    except OSError as error:
        raise BadTask(f'cannot read "{path}": {error.strerror}', where=where, expected="a readable file") from error
    except UnicodeDecodeError as error:
        raise BadTask(
            f"byte {error.object[error.start]:#04x} is not {encoding} text", where=str(path), do="add `encoding: latin-1` (or the right one) to the task"
        ) from error
    except LookupError as error:
        raise BadTask(f'there is no encoding "{encoding}"', where=where, expected="utf-8, latin-1, ...") from error
    if not rows.cells:
        raise BadTask(
            "it has no rows", where=str(path), expected="a header line and at least one row" if suffix not in JSON_LINES else "one JSON object a line"
        )
    return rows


def _delimited(path: Path, file: Any, delimiter: str) -> Rows:
    """A delimited file; a row with more or fewer cells than the header is an error with its line.

    Tab-separated files have no quoting (as registered with IANA): a lone quotation mark in a text would otherwise swallow the rows after it.
    """
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL, strict=True)
    try:
        header = tuple(name.strip() for name in next(reader, ()))
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise BadTask(f'the column "{twice}" is there twice', where=f"{path}:1", do="rename one of them")
        cells, lines = [], []
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise BadTask(
                    f"this row has {len(row)} cells, the header has {len(header)}",
                    where=f"{path}:{reader.line_num}",
                    expected=f"cells for {', '.join(header)}",
                    do='put quotes around a cell that holds the delimiter ("a, b"), or set `delimiter:` in the task',
                )
            cells.append(tuple(row))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise BadTask(
            f"not valid delimited text: {error}", where=f"{path}:{reader.line_num}", do='double the quotes inside a quoted cell (""like this"")'
        ) from error
    return Rows(path, header, cells, lines)


def _json_rows(path: Path, file: Any) -> Rows:
    """A JSONL file; columns are the keys of the first object, every object must have them."""
    header: tuple[str, ...] = ()
    cells, lines = [], []
    for number, record in _json_lines(path, file):
        header = header or tuple(record)
        missing = [name for name in header if name not in record]
        if missing:
            raise BadTask(f'the key "{missing[0]}" is missing in this row', where=f"{path}:{number}", expected=", ".join(header))
        cells.append(tuple(cell(record[name]) for name in header))
        lines.append(number)
    return Rows(path, header, cells, lines)


def _json_lines(path: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, record in json_values(path, file):
        if not isinstance(record, dict):
            raise BadTask("not a JSON object", where=f"{path}:{number}", expected='one JSON object a line, as {"text": "...", "label": "..."}')
        yield number, record


def json_values(path: Path, file: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Line numbers and what stands on them; empty lines are skipped. Raises BadTask for a line that is no JSON."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise BadTask(f"not valid JSON: {error}", where=f"{path}:{number}", expected="one JSON object a line") from error
        yield number, value


def cell(value: Any) -> str:
    """A JSON value as the text a CSV would hold; None is an empty cell."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value)


def some_lines(path: Path, lines: Sequence[int], at: Sequence[int], most: int = 5) -> str:
    """ "reviews.csv lines 3, 7, 9 and 4 more" for the rows at the positions `at`."""
    shown = ", ".join(str(lines[i]) for i in at[:most])
    more = f" and {len(at) - most} more" if len(at) > most else ""
    return f"{path.name} line{'s' if len(at) > 1 else ''} {shown}{more}"
