"""Rounding that looks at the inputs: error feedback (GPTQ, Frantar et al. 2022) and activation-aware scales of channels (AWQ, Lin et al. 2023).

Both see the inputs x of a matrix W only through H = sum of x x^T: what rounding to Q does to the outputs is the sum of |(Q - W) x|^2 = tr((Q - W) H (Q - W)^T).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lissome.compress.quantize.grids import Grid, Rule, find_grid, nearest
from lissome.core.errors import BadInput, BadModel

DAMP = 0.01
"""Added to H's diagonal, as a share of its mean: the paper's value."""
BLOCK = 128
"""Columns after which the errors are passed on to all that follow, as in the paper: within a block they stay in the cache."""
ALPHAS = tuple(at / 10 for at in range(11))
"""Exponents that are tried for the channels' scales; 0 leaves them alone. The paper tries 20."""


class Inputs:
    """What is kept of the inputs of a matrix. hessian: [columns, columns], sum of x x^T; size: [columns], sum of |x|; count: rows seen."""

    def __init__(self, columns: int):
        self.hessian = torch.zeros(columns, columns)
        self.size = torch.zeros(columns)
        self.count = 0

    def add(self, x: torch.Tensor, name: str) -> None:
        """See inputs [..., columns]. Raises BadModel, naming the matrix, where they are no numbers."""
        rows = x.detach().float().flatten(0, -2)
        if not bool(torch.isfinite(rows).all()):
            raise BadModel(f"calibration met NaN or infinity in what goes into {name}.", do="look for NaN in the weights before it and in the calibration data")
        self.hessian.addmm_(rows.T, rows)
        self.size += rows.abs().sum(0)
        self.count += len(rows)


def output_error(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """(Q - W) H (Q - W)^T of each row [rows]: the squared error of its outputs, summed over the inputs that H is of."""
    away = rounded - weight
    return ((away @ hessian) * away).sum(1)


@torch.no_grad()
def round_by_inputs(weight: torch.Tensor, hessian: torch.Tensor, group: int | None, rule: Rule, damp: float = DAMP) -> tuple[torch.Tensor, Grid]:
    """Codes [rows, columns] and grids for weights [rows, columns], by error feedback.

    Grids are searched with errors weighted by the inputs' energy. A row keeps the feedback's codes only where its outputs come nearer than by rounding to the
    nearest, on these grids and on those of the extremes: each row's `output_error` is at most that of plain rounding, whatever H is.
    Raises what `find_grid` raises.
    """
    plain = find_grid(weight, group, rule, "rtn")
    fitted = find_grid(weight, group, rule, "mse", importance=hessian.diagonal())
    codes, scale, offset = plain.codes(weight), plain.scale, plain.offset
    least = output_error(weight, plain.values(codes), hessian)
    for tried in (feed_back(weight, hessian, fitted, damp), fitted.codes(weight)):
        error = output_error(weight, fitted.values(tried), hessian)
        wins = error < least
        least = torch.where(wins, error, least)
        codes = torch.where(wins[:, None], tried, codes)
        scale, offset = (torch.where(wins[:, None], new, old) for new, old in ((fitted.scale, scale), (fitted.offset, offset)))
    return codes, Grid(scale, offset, plain.group, rule)


@torch.no_grad()
def feed_back(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, damp: float = DAMP, block: int = BLOCK) -> torch.Tensor:
    """Codes [rows, columns] of a grid: column by column, each rounding's error taken back in the columns that are still to come.

    Columns go by falling H_jj, the most heard first. The inverse's Cholesky factor comes from the damped H; damping is raised where H is not definite enough.
    """
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    upper = _inverse_factor(hessian[order][:, order], damp)
    scale, offset = (one[:, order] for one in grid.of_columns(weight.shape[1]))
    left, found = weight.float()[:, order].clone(), torch.empty_like(weight, dtype=torch.float32)
    for start in range(0, left.shape[1], block):
        end = min(start + block, left.shape[1])
        inside, errors = left[:, start:end].clone(), torch.empty(len(left), end - start)
        for at in range(end - start):
            here = start + at
            code = nearest(inside[:, at], scale[:, here], offset[:, here], grid.rule)
            found[:, here] = code
            error = (inside[:, at] - (code * scale[:, here] + offset[:, here])) / upper[here, here]
            inside[:, at + 1 :].addr_(error, upper[here, here + 1 : end], alpha=-1)
            errors[:, at] = error
        left[:, end:].addmm_(errors, upper[start:end, end:], alpha=-1)
    codes = torch.empty_like(found)
    codes[:, order] = found
    return codes


def _inverse_factor(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped H."""
    mean = float(hessian.diagonal().mean())
    eye = torch.eye(len(hessian))
    if not mean > 0:
        return eye
    for share in (damp, 10 * damp, 100 * damp, 1.0):
        lower, failed = torch.linalg.cholesky_ex(hessian + share * mean * eye)
        if int(failed) == 0:
            upper: torch.Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if int(failed) == 0 and bool(torch.isfinite(upper).all()):
                return upper
    return eye  # rounding to the nearest


@torch.no_grad()
def channel_scales(
    weights: Sequence[torch.Tensor],
    inputs: Inputs,
    group: int | None,
    rule: Rule,
    tied: Callable[[torch.Tensor], torch.Tensor] = lambda size: size,
) -> torch.Tensor:
    """Scales s [columns] so that (W s) rounded, on x / s, comes nearest to W x: s = mean|x|^a, the exponent with the least error of all `weights` together.

    tied: makes equal the sizes [columns] of channels that must share a scale. All ones, where nothing is better than not scaling.
    """
    if not inputs.count:
        raise BadInput("no calibration input reached a matrix that is to be scaled by its inputs.", do="give more calibration text")
    size = tied(inputs.size / inputs.count).clamp_min(1e-6)
    best, least = torch.ones_like(size), torch.inf
    for alpha in ALPHAS:
        factor = size**alpha
        factor = (factor / (factor.max() * factor.min()).sqrt()).clamp(1e-3, 1e3)
        error = 0.0
        for weight in weights:
            grid = find_grid(weight * factor, group, rule, "rtn")
            error += float(output_error(weight, grid.rounded(weight * factor) / factor, inputs.hessian).sum())
        if error < least:
            best, least = factor, error
    return best
