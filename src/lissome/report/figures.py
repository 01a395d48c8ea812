"""Figures as people read them: numbers, intervals, ratios, and what a limit means in units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lissome.core.contract import Clause, Limit
from lissome.core.errors import Incomparable
from lissome.core.manifest import Manifest, Tried
from lissome.core.measurement import Measurement, check_comparable

DASH = "–"
OPTION_GROUPS = ("original", "chosen", "on the front", "dominated", "over limit", "failed", "skipped")
"""Order in which options are shown; "on the front" gathers options nothing else beats on drop, latency and size at once."""


@dataclass(frozen=True)
class Quantity:
    """How a named figure is called, and which way is better."""

    name: str
    label: str
    better: Literal["lower", "higher"]
    gain: str
    loss: str


QUANTITIES = (
    Quantity("latency_p50", "latency p50", "lower", "faster", "slower"),
    Quantity("latency_p95", "latency p95", "lower", "faster", "slower"),
    Quantity("throughput", "throughput", "higher", "more", "less"),
    Quantity("cold_start", "cold start", "lower", "faster", "slower"),
    Quantity("memory", "memory", "lower", "less", "more"),
    Quantity("size", "size on disk", "lower", "smaller", "larger"),
    Quantity("energy", "energy per call", "lower", "less", "more"),
    Quantity("flops", "operations", "lower", "fewer", "more"),
)


def quantity(name: str) -> Quantity:
    """The known quantity of that name ("latency_p50_batch32" is a latency_p50), or one made from the name itself."""
    for one in QUANTITIES:
        if name == one.name:
            return one
        if name.startswith(one.name):
            return Quantity(name, one.label + name[len(one.name) :].replace("_", " "), one.better, one.gain, one.loss)
    return Quantity(name, name.replace("_", " "), "lower", "less", "more")


def _decimals(*values: float) -> int:
    """Decimals that leave three significant digits in the largest of the values."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if largest == 0:
        return 0
    return min(max(2 - math.floor(math.log10(largest)), 0), 6)


def number(value: float | None, decimals: int | None = None) -> str:
    """Three significant digits with thousands separators; a dash for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return DASH
    places = _decimals(value) if decimals is None else decimals
    text = f"{value:,.{places}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def plain(value: float) -> str:
    """A limit or an axis tick as a person writes it: 200, 3.74, 1, 1,500."""
    return (f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}").replace("-", "−")


def small(value: float | None) -> str:
    """A relative difference: 0.22, 0.006, 3e-7; a dash for None and NaN."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0 or abs(value) >= 0.001:
        return f"{value:.2g}"
    digits, power = f"{value:.0e}".split("e")
    return f"{digits}e−{abs(int(power))}"


def places(figure: Measurement) -> int:
    """Decimals a figure and its interval are shown with: two for points and percentages, else three significant digits."""
    if figure.unit in ("pt", "%"):
        return 2
    return _decimals(figure.value)


def value(figure: Measurement | None) -> str:
    """ "1.06 ms"; a dash when it was not taken; says "estimated" where it is."""
    if figure is None or not math.isfinite(figure.value):
        return DASH
    tag = " (estimated)" if figure.method == "estimated" else ""
    unit = "/s" if figure.unit == "1/s" else figure.unit
    return f"{number(figure.value, places(figure))} {unit}".rstrip() + tag


def interval(figure: Measurement | None) -> str:
    """ "[1.04, 1.09]"; empty for exact figures and for those without an interval."""
    if figure is None or not all(map(math.isfinite, (figure.value, figure.low, figure.high))) or figure.low == figure.high:
        return ""
    return f"[{number(figure.low, places(figure))}, {number(figure.high, places(figure))}]"


def full(figure: Measurement | None) -> str:
    """ "1.06 ms [1.04, 1.09]"."""
    return f"{value(figure)} {interval(figure)}".strip()


def ratio(before: Measurement | None, after: Measurement | None) -> float | None:
    """How many times better `after` is than `before` (above 1 is better), or None where that cannot be said."""
    if before is None or after is None:
        return None
    try:
        check_comparable(before, after)
    except Incomparable:
        return None
    a, b = before.value, after.value
    if quantity(after.name).better == "higher":
        a, b = b, a
    return a / b if math.isfinite(a) and math.isfinite(b) and a > 0 and b > 0 else None


def ratio_words(before: Measurement | None, after: Measurement | None) -> str:
    """ "7.0x faster", "1.3x larger", "the same", or a dash."""
    times = ratio(before, after)
    if times is None or after is None:
        return DASH
    kind = quantity(after.name)
    shown = times if times >= 1 else 1 / times
    if shown < 1.005:
        return "the same"
    text = f"{shown:,.0f}" if shown >= 20 else f"{shown:.1f}" if shown >= 1.95 else f"{shown:.2f}"
    return f"{text}x {kind.gain if times >= 1 else kind.loss}"


def plan_row(manifest: Manifest) -> Tried | None:
    """The plan's own row (the chosen option, or the nearest one when the contract is infeasible); None if it was not tried."""
    rows = [t for t in manifest.tried if t.option == manifest.plan]
    return next((t for t in rows if t.outcome != "original"), rows[0] if rows else None)


def original_row(manifest: Manifest) -> Tried | None:
    """The original's row: the one marked so, else the first when the original itself was chosen; None if it was not measured."""
    first = manifest.tried[0] if manifest.tried and manifest.tried[0].outcome == "chosen" else None
    return next((t for t in manifest.tried if t.outcome == "original"), first)


def group(row: Tried, manifest: Manifest) -> str:
    """The heading of OPTION_GROUPS a row is shown under; the plan's row is always "chosen", though a limit may be missed."""
    if row is plan_row(manifest) and row.outcome != "original":
        return "chosen"
    return "on the front" if row.on_front and row.outcome in ("dominated", "over limit") else row.outcome


def bound(limit: Limit, manifest: Manifest) -> float | None:
    """The limit in its own unit; a relative one ("3x", "1%rel") is worked out from the original's figures, None without them."""
    if not limit.relative:
        return limit.bound
    if limit.quantity == "max_drop":
        score = manifest.original_score
        return None if score is None or not math.isfinite(score.value) else points(score) * limit.bound / 100
    row = original_row(manifest)
    figure = row.figure(limit.name) if row else None
    return None if figure is None or not math.isfinite(figure.value) else figure.value / limit.bound


def points(score: Measurement) -> float:
    """A score in percentage points; scores without a unit are shares of 1."""
    return score.value if score.unit in ("%", "pt") else score.value * 100


def limit_of(clause: Clause, manifest: Manifest) -> Limit | None:
    """The limit a clause speaks of."""
    limits = manifest.contract.limits()
    named = next((one for one in limits if str(one) == clause.limit), None)
    if named is None and clause.figure is not None:
        named = next((one for one in limits if one.name == clause.figure.name), None)
    return named


def quantities_of(rows: list[Tried]) -> list[Quantity]:
    """Every quantity measured in any of the rows, the known ones first, in their usual order."""
    names = list(dict.fromkeys(f.name for row in rows for f in row.figures))
    order = {one.name: i for i, one in enumerate(QUANTITIES)}
    return [quantity(name) for name in sorted(names, key=lambda n: (order.get(n, len(order)), names.index(n)))]
