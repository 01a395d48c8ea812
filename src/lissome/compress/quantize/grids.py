"""Grids of few levels for groups of weights, and the search for the grid that fits a group best.

A weight is scale * code + offset, with one scale and offset for a group of neighbouring columns of a row. Whoever rounds weights in groups takes its grids from
here: what goes into a graph (`weights`), and what the decoder's kernel reads (half-precision scales and offsets, `Codes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from lissome.core.errors import BadInput, BadModel
from lissome.kernels.decoder.packed import Codes

Search = Literal["rtn", "absolute", "mse"]
"""What a grid is chosen by: the extremes of its weights alone (round to nearest), the least absolute or the least squared error of the weights."""
SHARES = {4: (0.4, 25), 7: (0.7, 11), 8: (0.7, 11)}
"""Candidate ranges by bits: from this share of the largest weight to all of it, and how many. The fewer levels, the more it pays to clip outliers."""
TOGETHER = 1 << 18
"""Weights searched at once: what a candidate makes of them stays in the cache of a core."""


@dataclass(frozen=True)
class Rule:
    """What a grid may be. low, high: codes; symmetric: zero in the middle; whole: else, zero is a code; half: scale and offset are float16."""

    low: int
    high: int
    symmetric: bool
    whole: bool = False
    half: bool = False

    @property
    def bits(self) -> int:
        """Of a code."""
        return (self.high - self.low + 2).bit_length() - 1


def decoder_rule(bits: int, symmetric: bool) -> Rule:
    """The grids that the decoder's kernel reads: of 4 bits Q4_0 (symmetric) and Q4_1, of 8 bits Q8_0."""
    return Rule(0, 15, symmetric, half=True) if bits == 4 else Rule(-127, 127, symmetric=True, half=True)


@dataclass(frozen=True)
class Grid:
    """Grids of a matrix. scale, offset: [rows, groups] float32; a code of `rule.low` to `rule.high` stands for scale * code + offset.

    group: columns that share one; the last group of a row may have fewer.
    """

    scale: torch.Tensor
    offset: torch.Tensor
    group: int
    rule: Rule

    def of_columns(self, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and offset of every weight [rows, columns]."""
        at = torch.arange(columns) // self.group
        return self.scale[:, at], self.offset[:, at]

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest code of each weight [rows, columns], as float."""
        scale, offset = self.of_columns(weight.shape[1])
        return nearest(weight, scale, offset, self.rule)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """What codes [rows, columns] stand for."""
        scale, offset = self.of_columns(codes.shape[1])
        if self.rule.whole:  # as `lissome.core.quantization` has it, to the bit
            return (codes + torch.round(offset / scale)) * scale
        return codes * scale + offset

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest value of each weight."""
        return self.values(self.codes(weight))

    def packable(self, codes: torch.Tensor) -> Codes:
        """Codes [rows, columns] for the kernel; the rule must be one of `decoder_rule`."""
        kind = torch.uint8 if self.rule.low == 0 else torch.int8
        return Codes(*(one.cpu().numpy() for one in (codes.to(kind), self.scale.half(), self.offset.half())))


def nearest(weight: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The nearest code of each weight; shapes broadcast."""
    return torch.clamp(torch.round((weight - offset) / scale), rule.low, rule.high)


@torch.no_grad()
def find_grid(weight: torch.Tensor, group: int | None, rule: Rule, search: Search = "mse", importance: torch.Tensor | None = None) -> Grid:
    """The grids of weights [rows, columns] with the least error. importance: [columns], how much an error counts there (mse and absolute alone).

    Weights that lie on such a grid get it back: symmetric ones always, others where every group uses its lowest and its highest code.
    Raises BadInput for a search that is not offered and for a kernel's rule whose group does not divide the columns, BadModel for weights that are not finite
    or lie beyond half precision.
    """
    if search not in ("rtn", "absolute", "mse"):
        raise BadInput(f'a search for "{search}" is not offered', expected="rtn, absolute or mse")
    rows, columns = weight.shape
    group = group or columns
    if rule.half and columns % group:
        raise BadInput(f"{rows} x {columns} weights cannot be in groups of {group}", expected=f"columns a multiple of {group}", do="take a smaller group")
    if not bool(torch.isfinite(weight).all()):
        raise BadModel("there are weights that are NaN or infinite.", do="look for what made them before rounding")
    missing = -columns % group
    wide = torch.nn.functional.pad(weight.float(), (0, missing)).view(rows, -1, group)
    counts = None if importance is None else torch.nn.functional.pad(importance.float(), (0, missing)).view(-1, group)
    parts = [_searched(part, rule, search, counts) for part in torch.split(wide, max(1, TOGETHER // max(1, columns)))]
    scale, offset = (torch.cat(one) for one in zip(*parts, strict=True))
    if not bool(torch.isfinite(scale).all() and torch.isfinite(offset).all()):
        raise BadModel("there are weights beyond half precision (65,504), which the scales are kept in.", do="leave this model in float")
    return Grid(scale, offset, group, rule)


def _searched(rows: torch.Tensor, rule: Rule, search: Search, importance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset [rows, groups] for rows [rows, groups, group]."""
    if search == "rtn":
        return _kept(*_extremes(rows, rule), rule)
    best: tuple[torch.Tensor, torch.Tensor] | None = None
    least = torch.full(rows.shape[:2], torch.inf)
    for wanted in _candidates(rows, rule):
        best, least = _better(rows, _kept(*wanted, rule), best, least, rule, search, importance)
    assert best is not None
    if search == "mse" and rule.half:
        best, least = _better(rows, _kept(*_least_squares(rows, best, rule, importance), rule), best, least, rule, search, importance)
    return best


def _better(
    rows: torch.Tensor,
    tried: tuple[torch.Tensor, torch.Tensor],
    best: tuple[torch.Tensor, torch.Tensor] | None,
    least: torch.Tensor,
    rule: Rule,
    search: Search,
    importance: torch.Tensor | None,
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The better of two grids for each group, and its error."""
    scale, offset = (one[..., None] for one in tried)
    error = nearest(rows, scale, offset, rule).mul_(scale).add_(offset).sub_(rows)
    error = error.square_() if search == "mse" else error.abs_()
    total = (error if importance is None else error.mul_(importance)).sum(-1)
    if best is None:
        return tried, total
    wins = total < least
    return (torch.where(wins, tried[0], best[0]), torch.where(wins, tried[1], best[1])), torch.where(wins, total, least)


def _extremes(rows: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """The finest grid that clips nothing."""
    floor, ceiling = rows.amin(-1), rows.amax(-1)
    if rule.symmetric:
        below, above = (-8, 7) if rule.low == 0 else (rule.low, rule.high)
        return torch.maximum(ceiling / above, floor / below), torch.zeros_like(floor)
    return _between(floor, ceiling, rule)


def _candidates(rows: torch.Tensor, rule: Rule) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Grids to try; those of symmetric ones at which the largest weight lies on a code come last."""
    yield _extremes(rows, rule)
    first, count = SHARES[rule.bits]
    shares = torch.linspace(first, 1.0, count).tolist()
    if rule.symmetric:
        largest, top = rows.abs().amax(-1), 7 if rule.low == 0 else rule.high
        for share in shares:
            yield largest * share / top, torch.zeros_like(largest)
        for code in range(1, 9) if rule.bits == 4 else ():
            yield largest / code, torch.zeros_like(largest)
        return
    floor, ceiling = rows.amin(-1), rows.amax(-1)
    if rule.whole:
        floor, ceiling = floor.clamp_max(0), ceiling.clamp_min(0)
    middle = torch.zeros_like(floor) if rule.whole else (floor + ceiling) / 2
    for share in shares:
        yield _between(middle + (floor - middle) * share, middle + (ceiling - middle) * share, rule)


def _between(floor: torch.Tensor, ceiling: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid whose lowest and highest codes stand for these."""
    if rule.whole:
        floor, ceiling = floor.clamp_max(0), ceiling.clamp_min(0)
    scale = (ceiling - floor) / (rule.high - rule.low)
    return scale, floor - rule.low * scale


def _kept(scale: torch.Tensor, offset: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """A grid as the rule can keep it; a group whose weights are all the same gets the scale 1."""
    if rule.half:
        scale = scale.half().float()
    scale = torch.where(scale.abs() > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    if rule.symmetric:
        return scale, -8 * scale if rule.low == 0 else torch.zeros_like(scale)
    if rule.whole:
        return scale, -torch.clamp(torch.round(-offset / scale), rule.low, rule.high) * scale
    return scale, offset.half().float() if rule.half else offset


def _least_squares(
    rows: torch.Tensor, grid: tuple[torch.Tensor, torch.Tensor], rule: Rule, importance: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset that fit the weights best while each keeps its code."""
    scale, offset = (one[..., None] for one in grid)
    codes = nearest(rows, scale, offset, rule)
    if rule.symmetric:
        codes = codes - 8 if rule.low == 0 else codes
        weighted = codes if importance is None else codes * importance
        found = (weighted * rows).sum(-1) / (weighted * codes).sum(-1)
        return torch.where(torch.isfinite(found) & (found > 0), found, grid[0]), torch.zeros_like(found)
    counts = torch.ones_like(rows) if importance is None else importance.expand_as(rows)
    total = counts.sum(-1)
    mean_code, mean = (counts * codes).sum(-1) / total, (counts * rows).sum(-1) / total
    away = codes - mean_code[..., None]
    found = (counts * away * (rows - mean[..., None])).sum(-1) / (counts * away.square()).sum(-1)
    usable = torch.isfinite(found) & (found > 0)
    return torch.where(usable, found, grid[0]), torch.where(usable, mean - found * mean_code, grid[1])
