"""Putting names beside points so that none covers another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lissome.report.front import Mark

ADVANCE, ADVANCE_BOLD = 0.61, 0.69
"""Mean width of a character in em, as wide as DejaVu Sans, the widest of the usual system faces, needs for names of options."""
PRIORITY = {"chosen": 0, "original": 1, "on the front": 2}


@dataclass(frozen=True)
class Box:
    """An upright rectangle in pixels; y grows downwards."""

    x0: float
    y0: float
    x1: float
    y1: float

    def meets(self, other: Box) -> bool:
        """Whether the two share any area."""
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1

    def inside(self, other: Box) -> bool:
        """Whether this one lies wholly within the other."""
        return self.x0 >= other.x0 and self.x1 <= other.x1 and self.y0 >= other.y0 and self.y1 <= other.y1


@dataclass(frozen=True)
class Label:
    """Text lines at (x, y of the first baseline). anchor: start, middle or end; leader: a line (x0, y0, x1, y1) to a far marker."""

    lines: tuple[str, ...]
    x: float
    y: float
    anchor: str
    box: Box
    step: float
    leader: tuple[float, float, float, float] | None = None


def place_labels(
    marks: Sequence[Mark], texts: Sequence[tuple[str, ...]], frame: Box, size: float, reserved: Sequence[Box], lines: Sequence[Box] = ()
) -> list[Label | None]:
    """A label for every mark that finds room (None where it does not), the chosen option and the original first.

    No two labels overlap, none covers a marker or a reserved box, all lie within `frame`. Only the labels of PRIORITY may, where there is
    no other room, cross one of the `lines` or a whisker.
    """
    placed: list[Label | None] = [None] * len(marks)
    markers = [mark.box for mark in marks]
    whiskers = [_whiskers(mark) for mark in marks]
    for i in sorted(range(len(marks)), key=lambda i: (PRIORITY.get(marks[i].group, 3), marks[i].x)):
        if not texts[i]:
            continue
        taken = [label.box for label in placed if label] + [b for k, b in enumerate(markers) if k != i] + list(reserved)
        thin = [b for k, boxes in enumerate(whiskers) for b in boxes if k != i] + list(lines)
        important = marks[i].group in PRIORITY
        options = [c for c in _candidates(marks[i], texts[i], size, far=important) if c.box.inside(frame) and not any(c.box.meets(b) for b in taken)]
        clear = next((c for c in options if not any(c.box.meets(b) for b in thin)), None)
        placed[i] = clear or (options[0] if options and important else None)
    return placed


def _candidates(mark: Mark, lines: tuple[str, ...], size: float, far: bool) -> Iterator[Label]:
    """Places for a label in order of preference: beside, above and below, corners, then farther away with a leader line."""
    width, step = max(map(len, lines)) * size * (ADVANCE_BOLD if mark.group == "chosen" else ADVANCE), size * 1.2
    height = step * len(lines)
    for gap in (5.0, 22.0, 40.0, 60.0, 84.0) if far else (5.0,):
        reach = mark.r + gap
        slant = mark.r * 0.7 + gap * 0.7
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)):
            far_x, far_y = (dx * slant, dy * slant) if dx and dy else (dx * reach, dy * reach)
            x, middle = mark.x + far_x, mark.y + far_y + dy * height / 2
            anchor = {1: "start", -1: "end", 0: "middle"}[dx]
            x0 = {1: x, -1: x - width, 0: x - width / 2}[dx]
            box = Box(x0, middle - height / 2, x0 + width, middle + height / 2)
            leader = None
            if gap > 5:
                shrink = mark.r / max((far_x**2 + far_y**2) ** 0.5, 1.0)
                leader = (round(mark.x + far_x * shrink, 1), round(mark.y + far_y * shrink, 1), round(mark.x + far_x, 1), round(mark.y + far_y, 1))
            yield Label(lines, round(x, 1), round(box.y0 + size * 0.95, 1), anchor, box, round(step, 1), leader)


def _whiskers(mark: Mark) -> list[Box]:
    """The interval lines of a mark as thin boxes."""
    boxes = []
    if mark.across:
        boxes.append(Box(mark.across[0], mark.y - 1, mark.across[1], mark.y + 1))
    if mark.upright:
        top, bottom = sorted(mark.upright)
        boxes.append(Box(mark.x - 1, top, mark.x + 1, bottom))
    return boxes
