"""The terminal's view: plain sentences and borderless tables that read the same at 80 columns, in a pipe and without colour."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.core.contract import Clause, Verdict
from lissome.core.manifest import Manifest
from lissome.core.measurement import Measurement
from lissome.report import figures
from lissome.report.changes import changes, duration, plan_word

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from lissome.core.cache import Entry
    from lissome.data.check import TaskReport
    from lissome.machine.peaks import Peak
    from lissome.machine.probe import Probe
    from lissome.optimize.measuring import Measured
    from lissome.optimize.recheck import Rechecked

WIDTH = 80
_WORD = {"met": "MET", "not met": "NOT MET", "cannot certify": "UNCERTAIN"}


def verdict_text(manifest: Manifest, width: int = WIDTH) -> str:
    """The verdict in sentences: one aligned line per limit, the plan, the nearest contract where there is one, the replay command.

    Lines are wrapped to `width`, commands are not: they are there to be copied.
    """
    verdict = manifest.verdict
    lines = _clause_lines(verdict)
    if verdict.status == "infeasible":
        lines.append(("INFEASIBLE", verdict.summary))
    tried = sum(row.outcome not in ("original", "skipped") for row in manifest.tried)
    word = "Nearest" if verdict.status == "infeasible" else "Plan"
    lines.append((word, f"{manifest.plan.name}; {tried} options tried in {duration(manifest.spent_seconds)}"))
    text, margin = _aligned(lines, width)
    if verdict.nearest:
        text.append(f"{'Try':<{margin}}{verdict.nearest}")
    text.append(f"{'Replay':<{margin}}{manifest.replay}")
    return "\n".join(text)


def recheck_text(found: Rechecked, width: int = WIDTH) -> str:
    """`verify`'s answer: the artifact's limits held against new figures, whether this is the machine it was made on, how noisy it was."""
    lines = _clause_lines(found.verdict)
    made = found.manifest.machine.cpu
    where = "the machine it was made on" if found.same_machine else f"another machine than the one it was made on ({made})"
    lines += [("Machine", f"measured again on {where}"), *([("Noise", found.noise)] if found.noise else [])]
    return sentences(lines, width)


def sentences(lines: Sequence[tuple[str, str]], width: int = WIDTH) -> str:
    """A word and a sentence a line, in two columns."""
    return "\n".join(_aligned(lines, width)[0])


def _clause_lines(verdict: Verdict) -> list[tuple[str, str]]:
    """A word and a sentence for each limit."""
    return [(_WORD[clause.status], clause_sentence(clause)) for clause in verdict.clauses]


def _aligned(lines: Sequence[tuple[str, str]], width: int) -> tuple[list[str], int]:
    """The lines wrapped in two columns, and the width of the first."""
    margin = max(len(word) for word in ("Replay", *(word for word, _ in lines))) + 2
    return [_wrapped(word, sentence, margin, width) for word, sentence in lines], margin


def clause_sentence(clause: Clause) -> str:
    """A clause's sentence, led by its limit unless the sentence already names it."""
    return clause.sentence if clause.limit.split()[0] in clause.sentence.split(":")[0] else f"{clause.limit}: {clause.sentence}"


def _wrapped(word: str, sentence: str, margin: int, width: int) -> str:
    """`word`, then the sentence in a column of its own."""
    return textwrap.fill(sentence, width, initial_indent=word.ljust(margin), subsequent_indent=" " * margin, break_long_words=False, break_on_hyphens=False)


def columns(headers: Sequence[tuple[str, str]], wide: int | None = None) -> Table:
    """A table without lines: (heading, justification) per column. wide: the index of the one column that may wrap, else none may."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for i, (text, justify) in enumerate(headers):
        table.add_column(text, justify=justify, no_wrap=i != wide, overflow="fold", ratio=1 if i == wide else None)  # type: ignore[arg-type]
    return table


def plain_cell(text: str) -> str:
    """Text that rich must not read as markup."""
    from rich.markup import escape

    return escape(text)


def before_after_table(manifest: Manifest) -> Table:
    """Original against the plan: every quantity with its interval and the change in words."""
    table = columns([("", "left"), ("original", "left"), (plan_word(manifest), "left"), ("change", "left")])
    for change in changes(manifest):
        row = (change.label.replace(", test split", ""), figures.full(change.before), figures.full(change.after), change.note)
        table.add_row(*map(plain_cell, row))
    return table


def options_table(manifest: Manifest) -> Group:
    """Every option tried: measured ones a line each, reasons cut where the line ends; failed and skipped ones below, in full."""
    from rich.console import Group, RenderableType
    from rich.text import Text

    table = columns([("option", "left"), ("p50 ms", "right"), ("MB", "right"), ("drop pt", "right"), ("why", "left")], wide=4)
    below = _facts()
    for group in figures.OPTION_GROUPS:
        rows = [row for row in manifest.tried if figures.group(row, manifest) == group]
        for row in rows if group in ("failed", "skipped") else []:
            below.add_row(group, plain_cell(f"{row.option.name}: {row.why}"))
        if not rows or group in ("failed", "skipped"):
            continue
        heading = plan_word(manifest) if group == "chosen" else group
        table.add_row(heading, style="dim")
        for row in rows:
            latency, size = row.figure("latency_p50"), row.figure("size")
            cells = (
                "  " + row.option.name.replace(", padded to 16", " pad16").replace(", fixed length", " fixed"),
                figures.number(latency.value if latency else None),
                figures.number(size.value if size else None),
                "0" if row.outcome == "original" else figures.number(row.drop.value if row.drop else None, 2),
            )
            table.add_row(*map(plain_cell, cells), Text(row.why, no_wrap=True, overflow="ellipsis"), style="bold" if group == "chosen" else None)
    parts: list[RenderableType] = [table, Text(""), below] if below.row_count else [table]
    return Group(*parts)


def measured_tables(found: Measured) -> list[Any]:
    """One table a model and batch size, then how noisy the machine was."""
    parts: list[Any] = []
    for row in found.rows:
        parts += [f"{row.model} ({row.runs_as}), batch {row.batch}", measurements_table([*row.figures, *row.speedups]), ""]
    return [*parts, *found.noise, f"Machine {found.machine}"]


def measurements_table(rows: Iterable[Measurement]) -> Table:
    """Measurements one a line: name, figure with unit, interval, n, how it was got."""
    table = columns([("", "left"), ("value", "right"), ("interval", "left"), ("n", "right"), ("method", "left")])
    for row in rows:
        cells = (figures.quantity(row.name).label, figures.value(row).replace(" (estimated)", ""), figures.interval(row), f"{row.n:,}", row.method)
        table.add_row(*map(plain_cell, cells))
    return table


def prediction_lines(inputs: Sequence[object], predictions: Sequence[Mapping[str, object]]) -> str:
    """One line an input: label and probability, or the plain outputs, then the input itself, shortened."""
    lines = []
    for given, found in zip(inputs, predictions, strict=True):
        probability = found.get("probability")
        answer = f"{found['label']}  {probability:.3f}" if isinstance(probability, float) else str(found.get("label", found.get("output", "")))
        lines.append((answer, " ".join(str(given).split())))
    wide = min(max((len(answer) for answer, _ in lines), default=0), WIDTH // 2)
    return "\n".join(f"{answer:<{wide}}  {textwrap.shorten(text, max(WIDTH - wide - 2, 20), placeholder=' ...')}" for answer, text in lines)


def cache_table(root: Path, entries: Sequence[Entry]) -> Group:
    """Where the cache is, and what it holds by kind, largest first."""
    from rich.console import Group

    kinds: dict[str, list[int]] = {}
    for entry in entries:
        kinds.setdefault(entry.kind, []).append(entry.bytes)
    table = columns([("kind", "left"), ("entries", "right"), ("MB", "right")])
    for kind, sizes in sorted(kinds.items(), key=lambda item: -sum(item[1])):
        table.add_row(plain_cell(kind), f"{len(sizes):,}", f"{sum(sizes) / 1e6:,.1f}")
    total = f"{len(entries):,} entries, {sum(entry.bytes for entry in entries) / 1e6:,.1f} MB"
    facts = _facts(("folder", str(root)), ("holds", total if entries else "nothing"))
    return Group(facts, "", table) if entries else Group(facts)


def probe_table(probe: Probe) -> Group:
    """The machine in words, its measured peaks, a real layer stack in each engine, and a plain sentence per lever."""
    from rich.console import Group, RenderableType

    machine = probe.machine
    engines = ", ".join(f"{name} {version}" for name, version in probe.engines.items())
    facts = _facts(
        ("processor", machine.cpu),
        ("instructions", ", ".join(machine.isa)),
        ("cores", probe.cores),
        ("memory", f"{machine.ram_mb / 1000:.1f} GB"),
        ("system", f"{probe.system}, Python {probe.python}"),
        ("engines", engines or "none"),
        *(("missing", f"{package}: {fix}") for package, fix in probe.missing.items()),
        ("fingerprint", machine.fingerprint),
    )
    peaks = columns([("peak", "left"), ("threads", "right"), ("measured", "right"), ("interval", "left"), ("what ran", "left")], wide=4)
    for peak in probe.peaks.entries:
        peaks.add_row(*map(plain_cell, (peak.kind, str(peak.threads), *_peak_cells(peak))))
    parts: list[RenderableType] = [facts, "", peaks]
    if probe.layers.timings:
        layers = columns([("engine", "left"), ("precision", "left"), ("shape", "left"), ("per pass", "right"), ("over torch", "right")])
        for timing in probe.layers.timings:
            over = f"{figures.number(timing.over_torch.value)}x" if timing.over_torch else figures.DASH
            layers.add_row(*map(plain_cell, (timing.engine, timing.precision, timing.shape, figures.value(timing.time), over)))
        parts += ["", plain_cell(probe.layers.what), layers]
    left_out = [("left out", f"{name}: {why}") for name, why in probe.layers.skipped.items()]
    parts += ["", _facts(*left_out, *(("-", text) for text in probe.sentences))]
    return Group(*parts)


def _peak_cells(peak: Peak) -> tuple[str, str, str]:
    """A peak's figure, interval and what ran; why not, where it could not be measured."""
    if peak.figure is None:
        return figures.DASH, "", peak.why or peak.timed
    return figures.value(peak.figure), figures.interval(peak.figure), peak.timed


def _facts(*pairs: tuple[str, str]) -> Table:
    """Two columns: a word, and text that wraps in its own column."""
    table = columns([("", "left"), ("", "left")], wide=1)
    table.show_header = False
    for word, text in pairs:
        table.add_row(word, plain_cell(text), style=None)
    return table


def task_report_table(report: TaskReport) -> Group:
    """What a task holds: its splits with their classes, lengths, repeated and shared examples, warnings last."""
    from rich.console import Group

    few = report.classes if len(report.classes) <= 5 else ()
    splits = columns([("split", "left"), ("examples", "right"), ("repeated", "right"), *((plain_cell(name), "right") for name in few)])
    for name, size in report.sizes.items():
        shares = [_share(report.balance.get(name, {}).get(label, 0), size) for label in few]
        splits.add_row(name, f"{size:,}", f"{report.repeated.get(name, 0):,}", *shares)
    facts = [("task", f"{report.name}, {report.kind.replace('-', ' ')}, from {report.ref}")]
    if report.classes:
        facts.append(("classes", f"{len(report.classes)}: {', '.join(report.classes[:20])}{', ...' if len(report.classes) > 20 else ''}"))
    if report.shape is not None:
        facts.append(("shape", " x ".join(map(str, report.shape))))
    if (lengths := report.lengths) is not None:
        cut = f"; {lengths.cut * 100:.1f} % reach the limit of {lengths.limit}" if lengths.cut is not None and lengths.limit else ""
        facts.append(("length", f"median {lengths.median:g}, p95 {lengths.p95:g}, longest {lengths.longest} {lengths.unit}{cut}"))
    facts += [("shared", f"{one.count:,} examples of {one.second} are also in {one.first}, such as {one.examples[0]}") for one in report.across if one.examples]
    if report.contradictory:
        facts.append(("unclear", f"{report.contradictory:,} examples occur with more than one label"))
    if report.certifiable_pt is not None:
        facts.append(("certifies", f"no drop below {report.certifiable_pt:.2f} pt: the test split is too small for less (95 % confidence)"))
    facts += [("note", note) for note in report.notes]
    warnings = [("warning", warning) for warning in report.warnings] or [("warnings", "none")]
    return Group(_facts(*facts), "", splits, "", _facts(*warnings))


def _share(part: int, whole: int) -> str:
    """ "48.2 %"."""
    return f"{100 * part / whole:.1f} %" if whole else figures.DASH
