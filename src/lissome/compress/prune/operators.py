"""What each ATen operation does to the axes of its tensors. One rule an operation; what has no rule keeps all that reaches it from being pruned."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from lissome.compress.prune.axes import Axis, concatenation, factors, product, reshape, unify
from lissome.compress.prune.flow import ALIKE, CONSTANT, POSITION, Flow, constant, operation

Arguments = Mapping[str, Any]
Rule = Callable[[Flow, fx.Node, Arguments], Any]

WIDTH = "two activations are multiplied along it, and their scale follows from its size"
HEAD_WIDTH = "it is the width of an attention head, from which the scale of the scores follows"


def follow(flow: Flow, node: fx.Node) -> Any:
    """Axes of the result of `node`, after its inputs' axes were unified as the operation requires. A list of them for several results."""
    name = operation(node)
    rule = RULES.get(name) or next((rule for pattern, rule in FAMILIES if re.fullmatch(pattern, name)), None)
    if rule is None and isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        rule = pointwise
    if rule is None:
        return unknown(flow, node)
    return rule(flow, node, _arguments(node))


def unknown(flow: Flow, node: fx.Node) -> Any:
    """Nothing that goes in or comes out is pruned. What gives no tensor (an assertion, a size) changes nothing."""
    if not isinstance(node.meta.get("val"), torch.Tensor | tuple | list) and isinstance(node.target, torch._ops.OpOverload):
        return []
    name = operation(node) or str(node.target)
    inputs = [axis for source in node.all_input_nodes for axis in _flat(flow.known.get(source, []))]
    reason = f"it reaches the operation {name}, which pruning does not follow" if inputs else CONSTANT
    for axis in inputs:
        axis.keep(reason)
    return constant(node, reason)


def pointwise(flow: Flow, node: fx.Node, _: Arguments) -> list[Axis]:
    """All tensors are broadcast against one another."""
    return _broadcast([flow.axes(source) for source in node.all_input_nodes], node.meta["val"].ndim)


def same(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """The result is laid out as the first input."""
    return list(flow.axes(_first(a)))


def linear(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """x @ weight.T + bias."""
    x, weight = flow.axes(a["input"]), flow.axes(a["weight"])
    unify(weight[1], x[-1])
    for bias in flow.axes(a["bias"]):
        unify(weight[0], bias)
    flow.bind(node, "in_features", weight[1])
    flow.bind(node, "out_features", weight[0])
    flow.produce(node, weight[0], -1)
    return [*x[:-1], weight[0]]


def matmul(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """mm, bmm, matmul: a weight on the right makes it a linear layer; two activations are an attention's products."""
    left, right = list(a.values())[:2]
    x, y = flow.axes(left), flow.axes(right)
    if len(x) < 2 or len(y) < 2:
        return unknown(flow, node)
    if flow.is_weight(right) and len(y) == 2:
        unify(y[0], x[-1])
        flow.produce(node, y[1], -1)
        return [*x[:-1], y[1]]
    batch = _broadcast([x[:-2], y[:-2]], max(len(x), len(y)) - 2)
    unify(x[-1], y[-2])
    for axis in (*x[-2:], *y[-2:]):
        axis.keep(WIDTH)
    for axis in batch:
        axis.mark(heads=True)
    return [*batch, x[-2], y[-1]]


def addmm(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """bias + x @ weight, as transformers' Conv1D does it."""
    if not flow.is_weight(a["mat2"]):
        return unknown(flow, node)
    x, weight = flow.axes(a["mat1"]), flow.axes(a["mat2"])
    unify(weight[0], x[-1])
    flow.bind(node, "nx", weight[0])
    flow.bind(node, "nf", weight[1])
    flow.produce(node, weight[1], -1)
    return _broadcast([[x[0], weight[1]], flow.axes(a["self"])], 2)


def attention(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """Scaled dot-product attention; with `enable_gqa` each key head serves several query heads."""
    query, key, value = (flow.axes(a[name]) for name in ("query", "key", "value"))
    heads = query[-3] if len(query) > 3 else None
    if heads is not None and key[-3].size != heads.size:
        unify(heads, product([key[-3], Axis(heads.size // key[-3].size)]))
        unify(key[-3], value[-3])
        batch = [*_broadcast([query[:-3], key[:-3], value[:-3]], len(query) - 3), heads]
    else:
        batch = _broadcast([query[:-2], key[:-2], value[:-2]], len(query) - 2)
    unify(query[-1], key[-1])
    unify(key[-2], value[-2])
    for axis in (query[-1], value[-1], query[-2], key[-2]):
        axis.keep(HEAD_WIDTH)
    for axis in batch[1:]:
        axis.mark(heads=True)
    _broadcast([flow.axes(a["attn_mask"]), [*batch, query[-2], key[-2]]], len(query))
    return [*batch, query[-2], value[-1]]


def convolution(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """conv1d to conv3d; with groups, both channels are a product of the groups and the channels in one."""
    x, weight = flow.axes(a["input"]), flow.axes(a["weight"])
    if len(x) != len(weight):
        return unknown(flow, node)
    groups = int(a["groups"])
    if groups == 1:
        unify(weight[1], x[1])
    else:
        group, inside = factors(x[1], [groups, x[1].size // groups])
        unify(weight[1], inside)
        unify(factors(weight[0], [groups, weight[0].size // groups])[0], group)
        flow.bind(node, "groups", group)
    return _convolved(flow, node, a, x, weight[0])


def transposed_convolution(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """The weight is [inputs, outputs / groups, ...]."""
    x, weight = flow.axes(a["input"]), flow.axes(a["weight"])
    if len(x) != len(weight):
        return unknown(flow, node)
    groups = int(a["groups"])
    unify(weight[0], x[1])
    out = weight[1]
    if groups > 1:
        group = factors(weight[0], [groups, weight[0].size // groups])[0]
        out = product([group, weight[1]])
        flow.bind(node, "groups", group)
    return _convolved(flow, node, a, x, out)


def _convolved(flow: Flow, node: fx.Node, a: Arguments, x: list[Axis], out: Axis) -> list[Axis]:
    for bias in flow.axes(a["bias"]):
        unify(out, bias)
    flow.bind(node, "in_channels", x[1])
    flow.bind(node, "out_channels", out)
    flow.produce(node, out, 1)
    return [x[0], out, *_positions(node, 2)]


def batch_norm(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """Each channel is normalised by itself, so removing one changes no other."""
    x = flow.axes(a["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        for axis in flow.axes(a.get(name)):
            unify(x[1], axis)
    flow.bind(node, "num_features", x[1])
    return list(x)


def layer_norm(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """Layer and RMS normalisation: an average runs over the last dimensions."""
    x, count = flow.axes(a["input"]), len(a["normalized_shape"])
    for name in ("weight", "bias"):
        for axis, scale in zip(x[-count:], flow.axes(a.get(name)), strict=False):
            unify(axis, scale)
    for axis in x[-count:]:
        axis.mark(averaged=True)
        if count > 1:
            axis.keep("a normalisation runs over several dimensions at once")
    if count == 1:
        flow.bind(node, "normalized_shape", x[-1])
    return list(x)


def group_norm(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """An average runs over the channels of each group, so whole groups can go without changing the others."""
    x, groups = flow.axes(a["input"]), int(a["num_groups"])
    group, inside = factors(x[1], [groups, x[1].size // groups])
    inside.mark(averaged=True)
    for name in ("weight", "bias"):
        for axis in flow.axes(a.get(name)):
            unify(x[1], axis)
    flow.bind(node, "num_groups", group)
    flow.bind(node, "num_channels", x[1])
    return list(x)


def embedding(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """Rows of a table."""
    weight = flow.axes(a["weight"])
    weight[0].keep("its rows are looked up by number")
    flow.bind(node, "embedding_dim", weight[1])
    flow.produce(node, weight[1], -1)
    return [*flow.axes(a["indices"]), weight[1]]


def prelu(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """A slope for each channel, or one for all."""
    x, weight = flow.axes(a["self"]), flow.axes(a["weight"])
    if weight and weight[0].size > 1:
        unify(x[1], weight[0])
        flow.bind(node, "num_parameters", x[1])
    return list(x)


def reduction(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """mean, sum, maximum... A sum does not notice a unit that is zero; the others do."""
    x = flow.axes(_first(a))
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
    x = flow.axes(_first(a))
    x[a["dim"]].keep("a softmax runs over it")
    return list(x)


def reshaped(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze: only the shapes matter."""
    x = flow.axes(_first(a))
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
    x = flow.axes(_first(a))
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
    x, parts = flow.axes(_first(a)), node.meta["val"]
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
    x = flow.axes(_first(a))
    dim = a["dim"] % len(x)
    which, half = factors(x[dim], [2, x[dim].size // 2])
    which.keep(ALIKE)
    return [*x[:dim], half, *x[dim + 1 :]]


def selected(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """select and unbind: one index of a dimension."""
    x = flow.axes(_first(a))
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
    x = flow.axes(_first(a))
    found = re.search(r"([123])d", operation(node))
    kept = len(x) - int(found.group(1)) if found else 0
    several = isinstance(node.meta["val"], tuple | list)
    outs = [[*x[:kept], *_positions(part, kept)] for part in (node.meta["val"] if several else [node])]
    return outs if several else outs[0]


def resized(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """slice, narrow, pad: dimensions whose size changes are cut or filled at fixed places."""
    x = flow.axes(_first(a))
    out = []
    for axis, size in zip(x, node.meta["val"].shape, strict=True):
        out.append(axis if axis.size == size else Axis(int(size), reason=axis.keep("it is sliced or padded at fixed places").reason or POSITION))
    return out


def ordered(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """roll, flip, cumsum: the order of units along these dimensions has a meaning."""
    x = flow.axes(_first(a))
    dims = a.get("dims", a.get("dim"))
    for dim in [dims] if isinstance(dims, int) else dims or range(len(x)):
        x[dim].keep("the order of its units has a meaning")
    return list(x)


def einsum(flow: Flow, node: fx.Node, a: Arguments) -> Any:
    """Letters are axes. Those that two activations are summed over are left alone."""
    equation, operands = str(a["equation"]).replace(" ", ""), a["tensors"]
    if "." in equation or "->" not in equation:
        return unknown(flow, node)
    sources, result = equation.split("->")
    letters: dict[str, Axis] = {}
    for text, operand in zip(sources.split(","), operands, strict=True):
        for letter, axis in zip(text, flow.axes(operand), strict=True):
            letters[letter] = unify(letters[letter], axis) if letter in letters else axis
    if sum(not flow.is_weight(operand) for operand in operands) > 1:
        for letter in set(letters) - set(result):
            letters[letter].keep(WIDTH)
    return [letters[letter] for letter in result]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy", "type_as", "lift_fresh_copy", "feature_dropout"), same),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "instance_norm"), same),
    **dict.fromkeys(("where", "masked_fill", "clamp", "pow", "float_power"), pointwise),
    **dict.fromkeys(("mm", "bmm", "matmul"), matmul),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"), reshaped),
    **dict.fromkeys(("expand", "repeat", "expand_as"), expanded),
    **dict.fromkeys(("t", "numpy_T", "transpose", "permute", "swapaxes"), permuted),
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenated),
    **dict.fromkeys(("split", "chunk", "split_with_sizes", "tensor_split"), divided),
    **dict.fromkeys(("select", "unbind"), selected),
    **dict.fromkeys(("slice", "narrow", "constant_pad_nd", "pad"), resized),
    **dict.fromkeys(("roll", "flip", "cumsum"), ordered),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), softmax),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "logsumexp", "argmax", "argmin", "any", "all"), reduction),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    "linear": linear,
    "addmm": addmm,
    "scaled_dot_product_attention": attention,
    "batch_norm": batch_norm,
    "group_norm": group_norm,
    "embedding": embedding,
    "prelu": prelu,
    "repeat_interleave": repeated,
    "stack": stacked,
    "glu": gated,
    "index": indexed,
    "einsum": einsum,
}
FAMILIES: tuple[tuple[str, Rule], ...] = (
    (r"conv[123]d", convolution),
    (r"conv_transpose[123]d", transposed_convolution),
    (r"(adaptive_)?(avg|max)_pool[123]d(_with_indices)?|upsample_\w+[123]d", windowed),
)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of an operation by the names of its schema, defaults included."""
    schema: Any = node.target._schema.arguments  # type: ignore[union-attr]
    named = {one.name: one.default_value for one in schema}
    named.update(dict(zip((one.name for one in schema), node.args, strict=False)))
    return {**named, **node.kwargs}


def _first(a: Arguments) -> Any:
    return next(iter(a.values()))


def _flat(known: Any) -> list[Axis]:
    return [axis for part in known for axis in _flat(part)] if isinstance(known, list) else [known]


def _positions(source: Any, begin: int) -> list[Axis]:
    value = source.meta["val"] if isinstance(source, fx.Node) else source
    return [Axis(int(size), reason=POSITION) for size in value.shape[begin:]]


def _all_one(axes: Sequence[Axis]) -> Axis:
    for axis in axes[1:]:
        unify(axes[0], axis)
    return axes[0]


def _broadcast(tensors: Sequence[Sequence[Axis]], ndim: int) -> list[Axis]:
    """One axis for each of the `ndim` dimensions, aligned at the last; dimensions of one adapt to the others."""
    out: list[Axis | None] = [None] * ndim
    for axes in tensors:
        for back, axis in enumerate(reversed(axes), start=1):
            if axis.size != 1:
                held = out[-back]
                out[-back] = axis if held is None else unify(held, axis)
    return [axis if axis is not None else Axis(1) for axis in out]
