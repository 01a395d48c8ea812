"""Curves over a range of sizes, on two logarithmic axes, as an SVG that stands by itself (light and dark pages alike)."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from lissome.report.front import Scale

COLOURS = ("#3b6fd4", "#d1652b", "#2f8f5b", "#8a55c2", "#b8860b", "#7a7f87")
WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 66, 404, 34, 290
Points = Sequence[tuple[float, float]]


def exponent(points: Points) -> float:
    """b of the least-squares fit y = a x^b, over points (x, y) > 0. Raises ValueError for fewer than two different x."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    if len(set(xs)) < 2:
        raise ValueError("an exponent takes two different sizes")
    middle = sum(xs) / len(xs)
    return sum((x - middle) * y for x, y in zip(xs, ys, strict=True)) / sum((x - middle) ** 2 for x in xs)


def curves(title: str, across: str, upright: str, lines: Mapping[str, Points]) -> str:
    """The SVG: a line for each name, through its points (x, y) > 0, with a tick at every x. across, upright: what the axes hold, with units."""
    every = [point for points in lines.values() for point in points]
    places = sorted({x for x, _ in every})
    x = Scale(places[0], places[-1], LEFT, RIGHT, log=True)
    y = Scale(min(y for _, y in every) / 1.3, max(y for _, y in every) * 1.3, BOTTOM, TOP, log=True)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="system-ui, sans-serif" font-size="11">',
        f"<title>{html.escape(title)}</title>",
        "<style>text{fill:#444}.axis{stroke:#8884}@media(prefers-color-scheme:dark){text{fill:#ccc}}</style>",
        f'<text x="{LEFT}" y="18" font-size="13" font-weight="600">{html.escape(title)}</text>',
        *(_tick_across(x(value), value) for value in places),
        *(_tick_upright(y(value), value) for value in y.ticks(6)),
        f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{html.escape(across)}</text>',
        f'<text transform="translate(14 {(TOP + BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{html.escape(upright)}</text>',
    ]
    heights = _apart([y(points[-1][1]) for points in lines.values()])
    for (name, points), colour, at in zip(lines.items(), COLOURS * (1 + len(lines) // len(COLOURS)), heights, strict=False):
        path = " ".join(f"{x(one)},{y(other)}" for one, other in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(one)}" cy="{y(other)}" r="3" fill="{colour}"/>' for one, other in points]
        parts.append(f'<text x="{RIGHT + 8}" y="{at + 4:.1f}" style="fill:{colour}">{html.escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _tick_across(at: float, value: float) -> str:
    text = f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"
    return f'<line class="axis" x1="{at}" x2="{at}" y1="{TOP}" y2="{BOTTOM}"/><text x="{at}" y="{BOTTOM + 16}" text-anchor="middle">{text}</text>'


def _tick_upright(at: float, value: float) -> str:
    return f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{at}" y2="{at}"/><text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{value:,g}</text>'


def _apart(heights: Sequence[float], least: float = 13) -> list[float]:
    """The same heights, moved down where two names would overlap."""
    found = [0.0] * len(heights)
    last = -math.inf
    for index in sorted(range(len(heights)), key=lambda i: heights[i]):
        last = found[index] = max(heights[index], last + least)
    return found
