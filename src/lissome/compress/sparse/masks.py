"""Which weights stay: boolean masks of one share of zeros in one pattern, from scores.

A weight [outputs, inputs, ...] is seen as a matrix [outputs, places * inputs] with the inputs innermost, so that the groups of an N:M pattern and the
columns of a block are neighbouring inputs at one place of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from lissome.compress.sparse.config import Pattern

LEAST_KEPT = 0.02
"""Share of a layer's weights that stays when layers are compared with one another: a layer that is all zeros cuts the network in two."""


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """[outputs, inputs, ...places] -> [outputs, places * inputs]."""
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)


def as_weight(matrix: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Undo `as_matrix` for a weight of `shape`."""
    return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def misfit(shape: torch.Size, pattern: Pattern) -> str:
    """Why a weight of `shape` cannot take the pattern, or ""."""
    outputs, inputs = shape[0], shape[1]
    if pattern.kind == "n:m" and inputs % pattern.m:
        return f"its {inputs} inputs are no multiple of {pattern.m}"
    if pattern.kind == "block" and (outputs % pattern.rows or inputs % pattern.columns):
        return f"its {outputs} x {inputs} weights do not divide into blocks of {pattern.rows} x {pattern.columns}"
    return ""


def masks(scores: Mapping[str, torch.Tensor], pattern: Pattern, share: float, together: bool = False) -> dict[str, torch.Tensor]:
    """True where a weight stays, in the shapes of `scores`; the highest scores stay, and about `share` of the weights does not.

    N:M patterns keep ceil((1 - share) * M) of every M, so the share rises in M steps. together: layers compete for what may stay.
    """
    units = {name: _units(as_matrix(score), pattern) for name, score in scores.items()}
    if pattern.kind == "n:m":
        kept = {name: _top_of_each(unit, math.ceil(round((1 - share) * pattern.m, 6))) for name, unit in units.items()}
    elif together:
        kept = _top_of_all(units, share)
    else:
        kept = {name: _top(unit, round((1 - share) * unit.numel())) for name, unit in units.items()}
    return {name: as_weight(_spread(kept[name], as_matrix(scores[name]).shape, pattern), score.shape) for name, score in scores.items()}


def _units(matrix: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Scores of what stays or goes as one: [weights], [groups, m], or [blocks] (means over a block)."""
    if pattern.kind == "n:m":
        return matrix.reshape(-1, pattern.m)
    if pattern.kind == "block":
        rows, columns = matrix.shape
        return matrix.reshape(rows // pattern.rows, pattern.rows, columns // pattern.columns, pattern.columns).mean(dim=(1, 3)).flatten()
    return matrix.flatten()


def _spread(kept: torch.Tensor, shape: torch.Size, pattern: Pattern) -> torch.Tensor:
    """Undo `_units` for a mask."""
    if pattern.kind != "block":
        return kept.reshape(shape)
    grid = kept.reshape(shape[0] // pattern.rows, shape[1] // pattern.columns)
    return grid.repeat_interleave(pattern.rows, 0).repeat_interleave(pattern.columns, 1)


def _top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True at the `count` highest of [n]; among equals the earlier one, so that equal input gives equal masks."""
    kept = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    kept[torch.argsort(scores, descending=True, stable=True)[:count]] = True
    return kept


def _top_of_each(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True at the `count` highest of each row of [groups, m]."""
    order = torch.argsort(scores, dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(1, order, True)


def _top_of_all(units: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """The highest scores of all layers stay; each layer keeps at least LEAST_KEPT of its own."""
    kept = {name: _top(unit, math.ceil(LEAST_KEPT * unit.numel())) for name, unit in units.items()}
    names = list(units)
    joined = torch.cat([units[name].masked_fill(kept[name], math.inf) for name in names])
    chosen = torch.split(_top(joined, round((1 - share) * joined.numel())), [units[name].numel() for name in names])
    return {name: mask | kept[name] for name, mask in zip(names, chosen, strict=True)}
