"""Tokens to experts and back without dropping any: sorted by expert, so that each expert sees its tokens as one matrix.

Both ways are permutations, and their gradients too: nothing is added in an order that may change, on CPU or GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lissome.core.errors import BadTensor

Expert = Callable[[int, torch.Tensor], torch.Tensor]
"""(number of an expert, its tokens [m, width]) -> [m, width]."""


class _Rows(torch.autograd.Function):
    """Each token `times` times, sorted: x [n, width] -> [n * times, width]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, order: torch.Tensor, back: torch.Tensor, times: int) -> torch.Tensor:
        ctx.save_for_backward(back)
        ctx.times = times
        return x[order // times]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return gradients[0][back].view(-1, ctx.times, gradients[0].shape[-1]).sum(1), None, None, None


class _Back(torch.autograd.Function):
    """Sorted rows in the order of the tokens again."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, order: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(order)
        return rows[back]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        return gradients[0][order], None, None


def dispatch(x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, experts: int, expert: Expert) -> torch.Tensor:
    """Sum over each token's experts of weight times output: x [n, width], index and weight [n, active] -> [n, width].

    An expert that no token chose is not called. An index of `experts` or more stands for none (transformers' expert parallelism has those) and adds nothing.
    """
    n, times = index.shape
    if x.ndim != 2 or len(x) != n or weight.shape != index.shape:
        raise BadTensor(f"tokens {list(x.shape)}, choices {list(index.shape)}, weights {list(weight.shape)}", expected="[n, width], [n, active], [n, active]")
    if not n:
        return x.clone()
    flat = index.flatten()
    order = flat.argsort(stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    counts = torch.bincount(flat, minlength=experts).tolist()  # the one time that a GPU is waited for
    rows: torch.Tensor = _Rows.apply(x, order, back, times)  # type: ignore[no-untyped-call]
    pieces = [expert(number, piece) if number < experts else torch.zeros_like(piece) for number, piece in enumerate(torch.split(rows, counts)) if len(piece)]
    out: torch.Tensor = _Back.apply(torch.cat(pieces), order, back)  # type: ignore[no-untyped-call]
    summed: torch.Tensor = (out.view(n, times, -1) * weight[..., None]).sum(1)
    return summed.to(x.dtype)
