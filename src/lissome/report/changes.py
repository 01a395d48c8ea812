"""Before and after: what the plan changed, line by line."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lissome.core.manifest import Manifest
from lissome.core.measurement import Measurement
from lissome.report import figures


@dataclass(frozen=True)
class Change:
    """One line of before and after. note: the change in words."""

    label: str
    before: Measurement | None
    after: Measurement | None
    note: str
    note_interval: str = ""


def changes(manifest: Manifest) -> list[Change]:
    """Original against plan, every quantity that either has, the score on the test split last."""
    plan, original = figures.plan_row(manifest), figures.original_row(manifest)
    found = []
    for quantity in figures.quantities_of([row for row in (original, plan) if row]):
        before, after = (row.figure(quantity.name) if row else None for row in (original, plan))
        found.append(Change(quantity.label, before, after, figures.ratio_words(before, after)))
    if manifest.original_score or manifest.chosen_score:
        score = manifest.original_score or manifest.chosen_score
        label = f"{score.name.replace('_', ' ')}, test split" if score else ""
        found.append(Change(label, manifest.original_score, manifest.chosen_score, _drop_words(manifest), figures.interval(manifest.drop)))
    return found


def _drop_words(manifest: Manifest) -> str:
    """ "0.31 pt lower", "0.20 pt higher", "0.20 % lower" where the limit is relative to the original's score, "the same"."""
    drop, limit = manifest.drop, manifest.contract.limit("max_drop")
    if drop is None or not math.isfinite(drop.value):
        return figures.DASH
    text = figures.number(abs(drop.value), figures.places(drop))
    unit = "%" if limit and limit.relative else drop.unit
    return "the same" if drop.value == 0 else f"{text} {unit} {'lower' if drop.value > 0 else 'higher'}"


def duration(seconds: float) -> str:
    """ "48 s", "3 min 7 s", "1 h 5 min"."""
    if not math.isfinite(seconds) or seconds < 0:
        return figures.DASH
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plan_word(manifest: Manifest) -> str:
    """What the plan is called: the chosen option, or, when nothing meets the contract, the nearest."""
    return "nearest" if manifest.verdict.status == "infeasible" else "chosen"
