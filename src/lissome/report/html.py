"""The report: one offline HTML file, verdict first. Nothing in it is fetched, and its content security policy says so."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from lissome.core.cache import disk_errors
from lissome.core.contract import Clause
from lissome.core.manifest import Manifest, Tried
from lissome.core.task import SPLITS
from lissome.report import figures
from lissome.report.changes import changes, duration, plan_word
from lissome.report.front import Scale, Tick, pictures

WIDE = (760, 460)
NARROW = (348, 380)
"""Pixels of the front's two drawings; the narrow one is shown on phones, so its texts stay readable."""

STATUS = {
    "met": "Met",
    "not met": "Not met",
    "infeasible": "Infeasible",
}
HEADLINE = {
    "met": "Every limit was met.",
    "not met": "The contract was not met.",
    "infeasible": "The contract cannot be met on this machine.",
}


def write_report(manifest: Manifest, path: Path) -> Path:
    """Write the report of one artifact to `path` (a single .html file); return it.

    Raises EnvironmentLacks when the disk is full or the folder cannot be written to.
    """
    with disk_errors("the report", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(render(manifest), encoding="utf-8")
        temporary.replace(path)
    return path


def render(manifest: Manifest) -> str:
    """The report's HTML. Every text that comes from the manifest is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = _asset("report.css"), _asset("report.js")
    environment.filters.update(number=figures.number, small=figures.small, value=figures.value, interval=figures.interval, duration=duration, gb=_gb)
    return environment.get_template("report.html").render(
        m=manifest,
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src '{_sha256(style)}'; script-src '{_sha256(script)}'; img-src data:; base-uri 'none'; form-action 'none'",
        **_context(manifest),
    )


def _asset(name: str) -> str:
    """The text of a file in templates/."""
    return (files("lissome.report") / "templates" / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    """A content security policy's hash source for an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _context(manifest: Manifest) -> dict[str, Any]:
    """What the template shows, besides the manifest itself."""
    plan = figures.plan_row(manifest)
    shown = figures.quantities_of(list(manifest.tried))
    return {
        "status": STATUS[manifest.verdict.status],
        "lede": lede(manifest),
        "headline": HEADLINE[manifest.verdict.status],
        "clauses": [(clause, interval_bar(clause, manifest)) for clause in manifest.verdict.clauses],
        "plan_word": plan_word(manifest),
        "changes": changes(manifest),
        "wide": pictures(manifest, *WIDE),
        "narrow": pictures(manifest, *NARROW, narrow=True),
        "groups": _groups(manifest),
        "columns": [q for q in shown if q.name in ("latency_p50", "latency_p95", "memory", "size")],
        "details": [_detail(i, row, manifest) for i, row in enumerate(manifest.tried)],
        "selected": next((i for i, row in enumerate(manifest.tried) if row is plan), 0),
        "splits": [(name, manifest.task.sizes[name]) for name in SPLITS if name in manifest.task.sizes],
        "intervals": _interval_words(manifest),
        "level": f"{manifest.contract.level * 100:g} %",
        "seen": {0: "not used", 1: "used once"}.get(manifest.seen, f"used for {manifest.seen} plans"),
        "tried_count": sum(row.outcome not in ("original", "skipped") for row in manifest.tried),
        "any_estimate": any(f.method == "estimated" for row in manifest.tried for f in row.figures),
    }


def _interval_words(manifest: Manifest) -> str:
    """ "95 % intervals" where all shown figures have that level, else "intervals"."""
    levels = {f.confidence for row in manifest.tried for f in row.figures if f.low != f.high}
    return f"{levels.pop() * 100:g} % intervals" if len(levels) == 1 else "intervals"


@dataclass(frozen=True)
class Bar:
    """A clause's interval against its limit, in pixels along one axis.

    allowed: where the limit lets the interval lie (x, width). was: the original's figure, None where there is none or it lies too far off.
    """

    width: int
    zero: float
    at: float
    low: float
    high: float
    allowed: tuple[float, float]
    limit: Tick
    was: Tick | None
    anchor: str


def interval_bar(clause: Clause, manifest: Manifest, width: int = 300) -> Bar | None:
    """The small picture beside a clause; None where the limit or the figure is not known, or they are not in one unit."""
    limit, figure = figures.limit_of(clause, manifest), clause.figure
    if limit is None or figure is None or not math.isfinite(figure.value):
        return None
    factor = limit.relative and figure.unit == "x"  # the figure is how many times below the original: more is better
    own_terms = factor or limit.quantity == "max_drop"  # a relative drop is stated in per cent of the original's score, as its limit is
    most = limit.bound if own_terms else figures.bound(limit, manifest)
    if most is None or (not own_terms and figure.unit != limit.unit):
        return None
    low, high = (v if math.isfinite(v) else figure.value for v in (figure.low, figure.high))
    comparable = clause.original is not None and clause.original.unit == figure.unit and math.isfinite(clause.original.value)
    original = clause.original.value if comparable and clause.original is not None else None
    reach = max(most, high, 0.0)
    near = original is not None and limit.quantity != "max_drop" and original <= 12 * reach
    start, end = min(0.0, low), max(reach, original if near and original is not None else 0.0) or 1.0
    scale = Scale(start - (0.03 * (end - start) if start < 0 else 0.0), end + 0.06 * (end - start), 4, width - 4)
    at_limit = scale(most)
    was = None
    if near and original is not None:
        was = Tick(scale(original), f"was {figures.number(original)}" if abs(scale(original) - at_limit) > 84 else "")
    unit = "x" if factor else "%" if limit.quantity == "max_drop" and limit.relative else limit.unit
    anchor = "start" if at_limit < 60 else "end" if at_limit > width - 60 else "middle"
    allowed = (at_limit, width - 4 - at_limit) if factor else (4.0, at_limit - 4)
    text = f"limit {figures.plain(most)}{'' if factor else ' '}{unit}"
    return Bar(width, scale(0.0), scale(figure.value), scale(low), scale(high), allowed, Tick(at_limit, text), was, anchor)


def lede(manifest: Manifest) -> str:
    """The verdict's summary; where it only repeats a clause that stands below it, how many limits hold instead."""
    verdict = manifest.verdict
    if not any(clause.sentence and clause.sentence in verdict.summary for clause in verdict.clauses):
        return verdict.summary
    held = sum(clause.status == "met" for clause in verdict.clauses)
    return f"{held} of {len(verdict.clauses)} limits hold." if len(verdict.clauses) > 1 else "The limit does not hold."


def _groups(manifest: Manifest) -> list[tuple[str, list[tuple[int, Tried]]]]:
    """Tried options under their headings, each with its index; fastest first within a group."""

    def speed(item: tuple[int, Tried]) -> float:
        figure = item[1].figure("latency_p50")
        return figure.value if figure and math.isfinite(figure.value) else math.inf

    rows = list(enumerate(manifest.tried))
    grouped = [(name, sorted((item for item in rows if figures.group(item[1], manifest) == name), key=speed)) for name in figures.OPTION_GROUPS]
    return [(name, items) for name, items in grouped if items]


def _detail(index: int, row: Tried, manifest: Manifest) -> Mapping[str, Any]:
    """The panel shown for one option beside the picture."""
    lines, original = [], figures.original_row(manifest)
    for quantity in figures.quantities_of([row]):
        figure = row.figure(quantity.name)
        words = "" if row.outcome == "original" else figures.ratio_words(original.figure(quantity.name) if original else None, figure)
        lines.append((quantity.label, figure, "" if words == figures.DASH else words))
    return {"index": index, "row": row, "group": figures.group(row, manifest), "figures": lines}


def _gb(megabytes: float) -> str:
    """ "7.9 GB"."""
    return f"{megabytes / 1000:.1f} GB" if math.isfinite(megabytes) else figures.DASH
