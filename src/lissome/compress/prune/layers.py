"""What layers do to the axes of their tensors: products with weights, attention, convolutions, normalisations."""

from __future__ import annotations

from typing import Any

from torch import fx

from lissome.compress.prune.axes import Axis, factors, product, unify
from lissome.compress.prune.flow import Flow
from lissome.compress.prune.rules import Arguments, broadcast, positions, unknown

WIDTH = "two activations are multiplied along it, and their scale follows from its size"
HEAD_WIDTH = "it is the width of an attention head, from which the scale of the scores follows"


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
    batch = broadcast([x[:-2], y[:-2]], max(len(x), len(y)) - 2)
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
    return broadcast([[x[0], weight[1]], flow.axes(a["self"])], 2)


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


def attention(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """Scaled dot-product attention; with `enable_gqa` each key head serves several query heads."""
    query, key, value = (flow.axes(a[name]) for name in ("query", "key", "value"))
    heads = query[-3] if len(query) > 3 else None
    if heads is not None and key[-3].size != heads.size:
        copies = Axis(heads.size // key[-3].size)
        flow.bind_like(node, "group", copies)
        unify(heads, product([key[-3], copies]))
        unify(key[-3], value[-3])
        batch = [*broadcast([query[:-3], key[:-3], value[:-3]], len(query) - 3), heads]
    else:
        batch = broadcast([query[:-2], key[:-2], value[:-2]], len(query) - 2)
    unify(query[-1], key[-1])
    unify(key[-2], value[-2])
    for axis in (query[-1], value[-1], query[-2], key[-2]):
        axis.keep(HEAD_WIDTH)
    for axis in batch[1:]:
        axis.mark(heads=True)
    broadcast([flow.axes(a["attn_mask"]), [*batch, query[-2], key[-2]]], len(query))
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
    return [x[0], out, *positions(node, 2)]


def batch_norm(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """Batch and instance normalisation: each channel by itself, so removing one changes no other."""
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
