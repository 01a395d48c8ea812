"""Floating-point operations of one call, counted (a multiply-add is two)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lissome.nn.call import call

if TYPE_CHECKING:
    import numpy as np


def attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of softmax(q k^T) v from shapes [batch, heads, length, width]: two matrix products; softmax is left out, as torch does."""
    batch, heads, rows, width = query
    columns, value_width = key[-2], value[-1]
    return int(2 * batch * heads * rows * columns * (width + value_width))


def count_flops(module: nn.Module, inputs: Mapping[str, np.ndarray]) -> int:
    """FLOPs of `module` on one batch of named inputs.

    torch's counter has no formula for the CPU's fused attention and counts it as nothing, so the formula is given here.
    """
    formulas: dict[Any, Any] = {}
    fused = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if fused is not None:
        formulas[fused] = attention_flops
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        call(module, tensors)
    return int(counter.get_total_flops())
