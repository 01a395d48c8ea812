"""The terminal's view: plain sentences and borderless tables that read the same at 80 columns, in a pipe and without colour."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lissome.core.contract import Clause
from lissome.core.manifest import Manifest
from lissome.core.measurement import Measurement
from lissome.report import figures
from lissome.report.changes import changes, duration

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

WIDTH = 80
_WORD = {"met": "MET", "not met": "NOT MET", "cannot certify": "UNCERTAIN"}


def verdict_text(manifest: Manifest, width: int = WIDTH) -> str:
    """The verdict in sentences: one aligned line per limit, the plan, the nearest contract where there is one, the replay command.

    Lines are wrapped to `width`, commands are not: they are there to be copied.
    """
    verdict = manifest.verdict
    lines = [(_WORD[clause.status], clause_sentence(clause)) for clause in verdict.clauses]
    if verdict.status == "infeasible":
        lines.append(("INFEASIBLE", verdict.summary))
    elif verdict.status == "not met":
        lines.append(("NOT MET", verdict.summary))
    tried = sum(row.outcome not in ("original", "skipped") for row in manifest.tried)
    word = "Nearest" if verdict.status == "infeasible" else "Plan"
    lines.append((word, f"{manifest.plan.name}; {tried} options tried in {duration(manifest.spent_seconds)}"))
    margin = max(len(word) for word in ("Replay", *(word for word, _ in lines))) + 2
    text = [_wrapped(word, sentence, margin, width) for word, sentence in lines]
    if verdict.nearest:
        text.append(f"{'Try':<{margin}}{verdict.nearest}")
    text.append(f"{'Replay':<{margin}}{manifest.replay}")
    return "\n".join(text)


def clause_sentence(clause: Clause) -> str:
    """A clause's sentence, led by its limit unless the sentence already names it."""
    return clause.sentence if clause.limit.split()[0] in clause.sentence.split(":")[0] else f"{clause.limit}: {clause.sentence}"


def _wrapped(word: str, sentence: str, margin: int, width: int) -> str:
    """`word`, then the sentence in a column of its own."""
    return textwrap.fill(sentence, width, initial_indent=word.ljust(margin), subsequent_indent=" " * margin, break_long_words=False, break_on_hyphens=False)


def _table(headers: Sequence[tuple[str, str]], wide: int | None = None) -> Table:
    """A table without lines: (heading, justification) per column. wide: the index of the one column that may wrap, else none may."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for i, (text, justify) in enumerate(headers):
        table.add_column(text, justify=justify, no_wrap=i != wide, overflow="fold", ratio=1 if i == wide else None)  # type: ignore[arg-type]
    return table


def _plain(text: str) -> str:
    """Text that rich must not read as markup."""
    from rich.markup import escape

    return escape(text)


def before_after_table(manifest: Manifest) -> Table:
    """Original against the plan: every quantity with its interval and the change in words."""
    table = _table([("", "left"), ("original", "left"), ("nearest" if manifest.verdict.status == "infeasible" else "chosen", "left"), ("change", "left")])
    for change in changes(manifest):
        row = (change.label.replace(", test split", ""), figures.full(change.before), figures.full(change.after), change.note)
        table.add_row(*map(_plain, row))
    return table


def options_table(manifest: Manifest) -> Group:
    """Every option tried: measured ones a line each, reasons cut where the line ends; failed and skipped ones below, in full."""
    from rich.console import Group
    from rich.text import Text

    table = _table([("option", "left"), ("p50 ms", "right"), ("MB", "right"), ("drop pt", "right"), ("", "left"), ("why", "left")])
    table.columns[-1].overflow = "ellipsis"
    below: list[Text] = []
    rank = {name: i for i, name in enumerate(figures.OPTION_GROUPS)}
    word = {"on the front": "front", "chosen": "nearest" if manifest.verdict.status == "infeasible" else "chosen"}
    for row in sorted(manifest.tried, key=lambda row: rank[figures.group(row, manifest)]):
        group = figures.group(row, manifest)
        if group in ("failed", "skipped"):
            below.append(Text(f"{group:<9}{row.option.name}: {row.why}"))
            continue
        latency, size = row.figure("latency_p50"), row.figure("size")
        cells = (
            row.option.name.replace(", padded to 16", " pad16").replace(", fixed length", " fixed"),
            figures.number(latency.value if latency else None),
            figures.number(size.value if size else None),
            figures.number(row.drop.value if row.drop else None, 2),
            word.get(group, group),
            row.why,
        )
        table.add_row(*map(_plain, cells), style="bold" if group == "chosen" else None)
    return Group(table, *([Text("")] if below else []), *below)


def measurements_table(rows: Iterable[Measurement]) -> Table:
    """Measurements one a line: name, figure with unit, interval, n, how it was got."""
    table = _table([("", "left"), ("value", "right"), ("interval", "left"), ("n", "right"), ("method", "left")])
    for row in rows:
        cells = (figures.quantity(row.name).label, figures.value(row).replace(" (estimated)", ""), figures.interval(row), f"{row.n:,}", row.method)
        table.add_row(*map(_plain, cells))
    return table
