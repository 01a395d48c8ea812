"""What the rules of operations share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from lissome.compress.prune.axes import Axis, unify
from lissome.compress.prune.flow import CONSTANT, POSITION, Flow, constant, operation
from lissome.compress.prune.trace import untraced

Arguments = Mapping[str, Any]


def positions(source: Any, begin: int) -> list[Axis]:
    """New axes for the dimensions from `begin` on, which count positions."""
    value = source.meta["val"] if isinstance(source, fx.Node) else source
    return [Axis(int(size), reason=POSITION) for size in value.shape[begin:]]


def broadcast(tensors: Sequence[Sequence[Axis]], ndim: int) -> list[Axis]:
    """One axis for each of the `ndim` dimensions, aligned at the last; dimensions of one adapt to the others."""
    out: list[Axis | None] = [None] * ndim
    for axes in tensors:
        for back, axis in enumerate(reversed(axes), start=1):
            if axis.size != 1:
                held = out[-back]
                out[-back] = axis if held is None else unify(held, axis)
    return [axis if axis is not None else Axis(1) for axis in out]


def first(a: Arguments) -> Any:
    """The first argument, whatever its name."""
    return next(iter(a.values()))


def unknown(flow: Flow, node: fx.Node) -> Any:
    """Nothing that goes in or comes out is pruned. What gives no tensor and writes into none (an assertion, a size) changes nothing."""
    writes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    if not writes and not isinstance(node.meta.get("val"), torch.Tensor | tuple | list) and isinstance(node.target, torch._ops.OpOverload):
        return []
    layer, name = untraced(node), operation(node) or str(node.target).removesuffix(".default")
    inputs = [axis for source in node.all_input_nodes for axis in _flat(flow.known.get(source, []))]
    reached = f"the layer {layer}, which cannot be traced" if layer else f"the operation {name}, which pruning does not follow"
    reason = f"it reaches {reached}" if inputs else CONSTANT
    for axis in inputs:
        axis.keep(reason)
    return constant(node, reason)


def _flat(known: Any) -> list[Axis]:
    return [axis for part in known for axis in _flat(part)] if isinstance(known, list) else [known]
