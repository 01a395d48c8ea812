"""The plan, part by part: what was chosen for each, what it saved, what it cost, and what the alternatives were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lissome.core.manifest import Manifest, PartChoice, PartOption
from lissome.core.measurement import Measurement
from lissome.report import figures
from lissome.report.terminal import columns, plain_cell, sentences

if TYPE_CHECKING:
    from rich.table import Table


def plan_text(manifest: Manifest) -> str:
    """The plan in a line, and the steps that led to it."""
    lines = [("Plan", manifest.plan.name)]
    lines += [("Then" if i else "First", step) for i, step in enumerate(manifest.steps)]
    if not manifest.parts:
        lines.append(("Parts", "the whole model runs one way; no part was treated differently from the others"))
    return sentences(lines)


def plan_table(manifest: Manifest) -> Table:
    """One line a part: what was chosen, what it saves and costs by itself, and the alternatives as "name: saves/costs"."""
    figures_of = [("saves ms", "right"), ("MB memory", "right"), ("MB files", "right"), ("costs nats", "right")]
    shown = columns([("part", "left"), ("chosen", "left"), *figures_of, ("instead of (ms saved / nats)", "left")], wide=6)
    for part in manifest.parts:
        taken = part.taken
        cells = (part.part, part.chosen, figures.number(taken.saves.value), saved(taken.memory), saved(taken.size), cost(taken), alternatives(part))
        shown.add_row(*map(plain_cell, cells))
    return shown


def alternatives(part: PartChoice) -> str:
    """What else could have been done to the part, with what it would have saved and cost."""
    others = [option for option in part.options if option.name != part.chosen]
    return "; ".join(f"{option.name} {figures.number(option.saves.value)}/{cost(option)}" for option in others)


def saved(figure: Measurement | None) -> str:
    """Megabytes saved; nothing where they were not taken."""
    return "" if figure is None else figures.number(figure.value)


def cost(option: PartOption) -> str:
    """The loss with as many digits as mean something."""
    value = option.loss.value
    return "0" if value == 0 else f"{value:.2g}"
