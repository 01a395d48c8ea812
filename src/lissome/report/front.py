"""The front as a picture: where every measured option lies between accuracy and cost, ready to be written as SVG.

All geometry is worked out here, so that it can be tested and the page needs no script to show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from lissome.core.manifest import Manifest, Tried
from lissome.core.measurement import Measurement
from lissome.report.figures import bound, group, original_row, plain, quantity
from lissome.report.labels import PRIORITY, Box, Label, place_labels

AXES = ("latency_p50", "latency_p95", "memory", "size")
"""Quantities offered for the horizontal axis, where at least one option has them."""


@dataclass(frozen=True)
class Scale:
    """Maps values from [low, high] to pixels [start, end], linearly or by logarithm; values outside are drawn at the edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel position, clamped to the axis."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = (math.log(max(value, self.low)) if self.log else value) - low
        share = min(max(at / (high - low), 0.0), 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, about: int) -> list[float]:
        """Round values within the axis: 1-2-5 steps, roughly `about` of them."""
        if self.log:
            found = [m * 10.0**k for k in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1) for m in (1, 2, 5)]
            found = [t for t in found if self.low <= t <= self.high]
            return found if len(found) <= 2 * about else [t for t in found if f"{t:e}".startswith("1")]
        rough = (self.high - self.low) / max(about, 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Mark:
    """One option in the picture. index: its place in `manifest.tried`; pinned: it lies below the picture and is drawn at its edge."""

    index: int
    group: str
    x: float
    y: float
    r: float
    across: tuple[float, float] | None
    upright: tuple[float, float] | None
    pinned: bool = False
    label: Label | None = None

    @property
    def layer(self) -> tuple[int, float]:
        """Painting order: what matters last, small marks over large ones."""
        return PRIORITY.get(self.group, len(PRIORITY)), self.r

    @property
    def box(self) -> Box:
        """What the marker itself covers."""
        return Box(self.x - self.r - 2, self.y - self.r - 2, self.x + self.r + 2, self.y + self.r + 2)


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Picture:
    """Everything one SVG of the front needs, in pixels.

    limit_x, limit_y: where the limits lie, if they are set. feasible: the shaded region (x, y, width, height) within both, or None.
    stairs: the SVG path above and left of which nothing was measured.
    """

    axis: str
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    title: str
    log: bool
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    limit_x: Tick | None
    limit_y: Tick | None
    feasible: tuple[float, float, float, float] | None
    stairs: str
    missing: int = 0


@dataclass
class _Point:
    """An option's values before they become pixels; change is minus the drop (pt)."""

    index: int
    row: Tried
    x: Measurement
    change: float
    low: float
    high: float
    size: float | None = field(default=None)


def pictures(manifest: Manifest, width: int, height: int, narrow: bool = False) -> list[Picture]:
    """One picture per axis that can be drawn; empty when no option has both a cost and a drop."""
    return [picture for axis in AXES if (picture := draw(manifest, axis, width, height, narrow)) is not None]


def draw(manifest: Manifest, axis: str, width: int, height: int, narrow: bool = False) -> Picture | None:
    """The picture with `axis` across and the change in accuracy upright, or None when nothing can be placed on it."""
    points = _points(manifest, axis)
    if not points:
        return None
    left, right, top, bottom = (44.0, width - 10.0, 40.0, height - 44.0) if narrow else (64.0, width - 18.0, 44.0, height - 52.0)
    drop = manifest.contract.limit("max_drop")
    allowed = bound(drop, manifest) if drop else None
    limit = next((one for one in manifest.contract.limits() if one.name == axis), None)
    most = bound(limit, manifest) if limit else None
    across = _across([p.x for p in points], most, left, right)
    upright = _upright(points, allowed, bottom, top)
    marks = _marks(points, manifest, across, upright, largest=10.0 if narrow else 15.0)
    limit_x = None if most is None else Tick(across(most), f"limit {plain(most)} {points[0].x.unit}")
    limit_y = None if allowed is None else Tick(upright(-allowed), f"limit −{plain(allowed)} pt" if allowed else "limit: no drop")
    edge_x, edge_y = limit_x.at if limit_x else right, limit_y.at if limit_y else bottom
    labelled = place_labels(
        marks,
        [_label_lines(manifest.tried[m.index], m, narrow) for m in marks],
        Box(left + 2, top + 2, right - 2, bottom - 2),
        size=11.0 if narrow else 12.5,
        reserved=_captions(limit_y, right, 11.0 if narrow else 12.5),
        lines=_lines(limit_x, limit_y, left, right, top, bottom),
    )
    return Picture(
        axis=axis,
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        title=f"{quantity(axis).label}, {points[0].x.unit}{', log scale' if across.log else ''}",
        log=across.log,
        marks=tuple(Mark(m.index, m.group, m.x, m.y, m.r, m.across, m.upright, m.pinned, label) for m, label in zip(marks, labelled, strict=True)),
        x_ticks=_x_ticks(across, narrow),
        y_ticks=tuple(Tick(upright(v), _signed(v)) for v in upright.ticks(5)),
        limit_x=limit_x,
        limit_y=limit_y,
        feasible=(left, top, round(edge_x - left, 1), round(edge_y - top, 1)) if limit_x or limit_y else None,
        stairs=_stairs(points, across, upright, bottom, right),
        missing=len(manifest.tried) - len(points),
    )


def _points(manifest: Manifest, axis: str) -> list[_Point]:
    """Options with a usable figure on the axis and a known drop (the original's is 0 by definition)."""
    found = []
    for index, row in enumerate(manifest.tried):
        x, size = row.figure(axis), row.figure("size")
        if x is None or not math.isfinite(x.value) or x.value <= 0:
            continue
        if row is original_row(manifest):
            change, low, high = 0.0, 0.0, 0.0
        elif row.drop is not None and math.isfinite(row.drop.value):
            change, low, high = -row.drop.value, -row.drop.high, -row.drop.low
            low, high = (low if math.isfinite(low) else change), (high if math.isfinite(high) else change)
        else:
            continue
        found.append(_Point(index, row, x, change, low, high, size.value if size and math.isfinite(size.value) else None))
    return found


def _across(figures: Sequence[Measurement], most: float | None, left: float, right: float) -> Scale:
    """The horizontal scale; logarithmic when the values span more than a factor of five. Very long intervals run off it, they do not set it."""
    values = [f.value for f in figures] + ([most] if most else [])
    low, high = min(values), max(values)
    ends = [v for f in figures for v in (f.low, f.high) if math.isfinite(v) and low / 1.5 <= v <= high * 1.5]
    low, high = min([low, *ends]), max([high, *ends])
    if high / low > 5:
        return Scale(low / 1.25, high * 1.25, left, right, log=True)
    pad = max((high - low) * 0.12, high * 0.02)
    return Scale(max(0.0, low - pad), high + pad, left, right)


def _upright(points: Sequence[_Point], allowed: float | None, bottom: float, top: float) -> Scale:
    """The vertical scale. Options far below everything of interest do not squash the rest: they are pinned to the lower edge."""
    drops = sorted(-p.change for p in points)
    upper_quartile = drops[(3 * (len(drops) - 1)) // 4]
    cap = max(3 * (allowed or 0.0), 3 * upper_quartile, 0.5)
    shown = [p for p in points if -p.change <= cap] or list(points)
    low = min([max(p.low, p.change - cap) for p in shown] + ([-1.25 * allowed] if allowed else []))
    high = max([p.high for p in shown] + [0.0])
    high = min(high, max(p.change for p in shown) + cap)
    pad = max((high - low) * 0.08, 0.05)
    return Scale(low - pad, high + pad, bottom, top)


def _marks(points: Sequence[_Point], manifest: Manifest, across: Scale, upright: Scale, largest: float) -> list[Mark]:
    """Markers, area in proportion to the model's size."""
    biggest = max((p.size for p in points if p.size), default=None)
    marks = []
    for p in points:
        r = round(max(largest * math.sqrt(p.size / biggest), 4.0), 1) if p.size and biggest else largest / 2
        pinned = p.change < upright.low
        low, high = (v if math.isfinite(v) else p.x.value for v in (p.x.low, p.x.high))
        marks.append(
            Mark(
                index=p.index,
                group=group(p.row, manifest),
                x=across(p.x.value),
                y=round(upright(p.change) - r - 3, 1) if pinned else upright(p.change),
                r=r,
                across=(across(low), across(high)) if high > low else None,
                upright=(upright(p.low), upright(p.high)) if p.high > p.low and not pinned else None,
                pinned=pinned,
            )
        )
    return marks


def _label_lines(row: Tried, mark: Mark, narrow: bool) -> tuple[str, ...]:
    """A mark's label: one line, or two where room is short. Options that lost are named only on the wide picture."""
    fall = f" ({_signed(-row.drop.value)} pt)" if mark.pinned and row.drop else ""
    if mark.group == "original":
        return (f"original, {row.option.precision}",) if not narrow else ("original",)
    name = row.option.name
    if not narrow:
        return (name + fall,)
    rest = name[len(row.option.engine) + 1 :] + fall
    return (row.option.engine, *rest.split(", ")) if mark.group in ("chosen", "on the front") or mark.pinned else ()


def _captions(limit_y: Tick | None, right: float, size: float) -> list[Box]:
    """Boxes labels must leave free: the vertical limit's caption, which stands inside the picture."""
    return [Box(right - size * 0.6 * len(limit_y.text) - 4, limit_y.at - 18, right, limit_y.at)] if limit_y else []


def _lines(limit_x: Tick | None, limit_y: Tick | None, left: float, right: float, top: float, bottom: float) -> list[Box]:
    """The limit lines as thin boxes, which labels leave free where they can."""
    boxes = [Box(left, limit_y.at - 2, right, limit_y.at + 2)] if limit_y else []
    return boxes + ([Box(limit_x.at - 2, top, limit_x.at + 2, bottom)] if limit_x else [])


def _x_ticks(across: Scale, narrow: bool) -> tuple[Tick, ...]:
    """Ticks with texts that keep their distance."""
    ticks = [Tick(across(v), plain(v)) for v in across.ticks(4 if narrow else 7)]
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick.at - kept[-1].at > 4 + 3.6 * (len(tick.text) + len(kept[-1].text)):
            kept.append(tick)
    return tuple(kept)


def _signed(value: float) -> str:
    """+0.5, 0, −1."""
    if abs(value) < 1e-9:
        return "0"
    return f"{value:+.3g}".replace("-", "−")


def _stairs(points: Sequence[_Point], across: Scale, upright: Scale, bottom: float, right: float) -> str:
    """The staircase through the options that no other one beats on both axes of this picture."""
    best: list[_Point] = []
    for p in sorted(points, key=lambda p: (p.x.value, -p.change)):
        if (not best or p.change > best[-1].change) and p.change >= upright.low:
            best.append(p)
    if not best:
        return ""
    path = f"M{across(best[0].x.value)},{bottom}V{upright(best[0].change)}"
    for _, after in pairwise(best):
        path += f"H{across(after.x.value)}V{upright(after.change)}"
    return path + f"H{right}"
