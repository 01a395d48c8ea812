"""What operations that move, join and divide numbers do to the axes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import fx

from lissome.compress.prune.axes import Axis, concatenation, factors, product, reshape, unify
from lissome.compress.prune.flow import ALIKE, POSITION, Flow, constant, operation
from lissome.compress.prune.rules import Arguments, broadcast, first, positions, unknown

SLICED = "it is sliced or padded at fixed places"


def reduction(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """mean, sum, maximum... A sum does not notice a unit that is zero; the others do."""
    if isinstance(a.get("other"), fx.Node):
        return broadcast([flow.axes(source) for source in node.all_input_nodes], node.meta["val"].ndim)  # the larger of two tensors
    x = flow.axes(first(a))
    dims = a.get("dim")
    over = {d % len(x) for d in ([dims] if isinstance(dims, int) else dims or range(len(x)))} if x else set()
    for at in over:
        if operation(node) in ("argmax", "argmin"):
            x[at].keep("the position of its largest unit is asked for")
        elif operation(node) != "sum":
            x[at].mark(averaged=True)
    left = [Axis(1) if at in over else axis for at, axis in enumerate(x) if at not in over or a.get("keepdim")]
    return [list(left) for _ in node.meta["val"]] if isinstance(node.meta["val"], tuple | list) else left


def softmax(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """Its units are shares of a whole."""
    x = flow.axes(first(a))
    x[a["dim"]].keep("a softmax runs over it")
    return list(x)


def reshaped(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze: only the shapes matter."""
    x = flow.axes(first(a))
    shape = [int(size) for size in node.meta["val"].shape]
    if 0 in shape:
        return constant(node, POSITION)  # type: ignore[no-any-return]
    out = reshape(x, shape)
    for axis in out:
        if not any(axis is old for old in x):
            flow.bind_like(node, "head", axis)
    for axis in x:
        if not any(axis.root() is new.root() for new in out):
            flow.bind(node, "all_head_size", axis)
            flow.bind(node, "inner_dim", axis)
    return out


def expanded(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """expand and repeat: a dimension of one becomes any size; a longer one that is repeated is a product."""
    x = flow.axes(a["self"])
    shape = [int(size) for size in node.meta["val"].shape]
    padded = [Axis(1)] * (len(shape) - len(x)) + list(x)
    out = []
    for axis, size in zip(padded, shape, strict=True):
        if axis.size == size:
            out.append(axis)
            continue
        copies = Axis(size // axis.size)
        flow.bind_like(node, "group", copies)
        out.append(product([copies, axis]))
    return out


def repeated(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """repeat_interleave by a number: each index stands for several, one after another."""
    x, dim = list(flow.axes(a["self"])), a.get("dim")
    if not isinstance(a["repeats"], int) or dim is None:
        return unknown(flow, node)
    copies = Axis(a["repeats"])
    flow.bind_like(node, "group", copies)
    x[dim] = product([x[dim], copies])
    return x


def permuted(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """transpose, permute: the dimensions change places."""
    x = flow.axes(first(a))
    if "dims" in a:
        return [x[d] for d in a["dims"]]
    if "dim0" not in a:
        return x[::-1]
    out = list(x)
    out[a["dim0"]], out[a["dim1"]] = x[a["dim1"]], x[a["dim0"]]
    return out


def concatenated(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """One after another along a dimension; the others agree."""
    parts = [flow.axes(part) for part in a["tensors"]]
    parts = [part for part in parts if len(part) > 1 or (part and part[0].size)]  # an empty cache is one dimension of nothing
    dim = a["dim"] % len(parts[0])
    out = [_all_one([part[at] for part in parts]) if at != dim else None for at in range(len(parts[0]))]
    return [concatenation([part[dim] for part in parts]) if axis is None else axis for axis in out]


def stacked(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """Tensors side by side along a new dimension."""
    parts = [flow.axes(part) for part in a["tensors"]]
    out = [_all_one([part[at] for part in parts]) for at in range(len(parts[0]))]
    out.insert(a["dim"] % (len(out) + 1), Axis(len(parts), reason=POSITION))
    return out


def divided(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """split, chunk: equal parts are cut alike, as their code takes them to be of one size."""
    x, parts = flow.axes(first(a)), node.meta["val"]
    dim = a["dim"] % len(x)
    sizes = [int(part.shape[dim]) for part in parts]
    if len(set(sizes)) > 1:
        x[dim].keep("it is split at fixed places")
        inside = [Axis(size, reason="it is split at fixed places") for size in sizes]
    else:
        which, part = factors(x[dim], [len(sizes), sizes[0]])
        which.keep(ALIKE)
        inside = [part] * len(sizes)
        flow.bind_like(node, "split", part)
    return [[*x[:dim], axis, *x[dim + 1 :]] for axis in inside]


def gated(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """glu: one half times the sigmoid of the other."""
    x = flow.axes(first(a))
    dim = a["dim"] % len(x)
    which, half = factors(x[dim], [2, x[dim].size // 2])
    which.keep(ALIKE)
    return [*x[:dim], half, *x[dim + 1 :]]


def selected(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """select and unbind: one index of a dimension."""
    x = flow.axes(first(a))
    dim = a["dim"] % len(x)
    x[dim].keep("single units of it are picked out")
    out = [*x[:dim], *x[dim + 1 :]]
    return [list(out) for _ in node.meta["val"]] if isinstance(node.meta["val"], tuple | list) else out


def indexed(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """x[i, j] with index tensors for the first dimensions: those are looked up, the others stay."""
    x, indices = flow.axes(a["self"]), a["indices"]
    count = len(indices)
    if any(index is None for index in indices):
        return unknown(flow, node)
    for axis in x[:count]:
        axis.keep("single units of it are picked out")
    left = x[count:]
    return [*constant(node, POSITION)[: node.meta["val"].ndim - len(left)], *left]


def windowed(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """Pooling and resampling over as many last dimensions as the name says."""
    x = flow.axes(first(a))
    found = re.search(r"([123])d", operation(node))
    kept = len(x) - int(found.group(1)) if found else 0
    several = isinstance(node.meta["val"], tuple | list)
    outs = [[*x[:kept], *positions(part, kept)] for part in (node.meta["val"] if several else [node])]
    return outs if several else outs[0]


def resized(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """slice, narrow, pad: dimensions whose size changes are cut or filled at fixed places."""
    x = flow.axes(first(a))
    out = []
    for axis, size in zip(x, node.meta["val"].shape, strict=True):
        if axis.size != size:
            axis.keep(SLICED)
        out.append(axis if axis.size == size else Axis(int(size), reason=SLICED))
    return out


def ordered(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """roll, flip, cumsum: the order of units along these dimensions has a meaning."""
    x = flow.axes(first(a))
    dims = a.get("dims", a.get("dim"))
    for dim in [dims] if isinstance(dims, int) else dims or range(len(x)):
        x[dim].keep("the order of its units has a meaning")
    return list(x)


def _all_one(axes: Sequence[Axis]) -> Axis:
    for axis in axes[1:]:
        unify(axes[0], axis)
    return axes[0]
