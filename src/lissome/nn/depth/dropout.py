"""Layer dropout while a model trains: rows skip blocks by lot, the later ones more often, so that early blocks learn to stand alone.

Elhoushi et al., "LayerSkip", 2024, section 4.1: block l of L is skipped with probability most * (exp(l ln 2 / (L - 1)) - 1), each row for itself. A row that
skips a block is not computed there, and the block gets no gradient from it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lissome.core.errors import BadInput
from lissome.nn.depth.blocks import each_argument, find_blocks, hidden_of


def dropout_rates(depth: int, most: float) -> list[float]:
    """Probability of skipping each of `depth` blocks: 0 for the first, `most` for the last."""
    if not 0 <= most < 1:
        raise BadInput(f"a layer dropout of {most} is out of range", expected="0 up to, but not including, 1")
    return [most * (math.exp(at * math.log(2) / max(1, depth - 1)) - 1) for at in range(depth)]


@contextmanager
def layer_dropout(module: nn.Module, most: float, blocks: str | None = None, fixed: Collection[str] = ()) -> Iterator[None]:
    """Within the context, and in training mode, rows skip blocks of `module`. At least one row passes each block, so that its output's form is known.

    fixed: places in the blocks' arguments that are not laid out by rows even where their first size is the batch's, as `fixed_places` finds them.
    """
    _, every = find_blocks(module, blocks)
    given = [(block, rate) for block, rate in zip(every, dropout_rates(len(every), most), strict=True) if rate > 0]
    before = []
    for block, rate in given:
        before.append((block, block.__dict__.get("forward")))
        block.forward = _skipping(block, rate, fixed)
    try:
        yield
    finally:
        for block, had in reversed(before):
            if had is None:
                del block.__dict__["forward"]
            else:
                block.forward = had


def _skipping(block: nn.Module, rate: float, fixed: Collection[str]) -> Any:
    whole = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not block.training:
            return whole(*args, **kwargs)
        state = args[0] if args else kwargs["hidden_states"]
        count = len(state)
        stays = torch.rand(count, device=state.device) >= rate
        if bool(stays.all()):
            return whole(*args, **kwargs)
        if not bool(stays.any()):
            stays[int(torch.randint(count, (1,)))] = True
        rows = stays.nonzero().flatten()

        def staying(place: str, one: torch.Tensor) -> torch.Tensor:
            return one.index_select(0, rows) if one.ndim and len(one) == count and place not in fixed else one

        some_args, some_kwargs = each_argument(args, kwargs, staying)
        output = whole(*some_args, **some_kwargs)
        merged = state.to(hidden_of(output).dtype).index_copy(0, rows, hidden_of(output))
        return merged if isinstance(output, torch.Tensor) else type(output)((merged, *output[1:]))

    return forward
