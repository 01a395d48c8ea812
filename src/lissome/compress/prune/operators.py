"""What each ATen operation does to the axes of its tensors. One rule an operation; what has no rule keeps all that reaches it from being pruned."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from lissome.compress.prune import layers, layout
from lissome.compress.prune.axes import Axis
from lissome.compress.prune.flow import Flow, operation
from lissome.compress.prune.rules import Arguments, broadcast, first, unknown

Rule = Callable[[Flow, fx.Node, Arguments], Any]


def follow(flow: Flow, node: fx.Node) -> Any:
    """Axes of the result of `node`, after its inputs' axes were unified as the operation requires. A list of them for several results."""
    name = operation(node)
    rule = RULES.get(name) or next((rule for pattern, rule in FAMILIES if re.fullmatch(pattern, name)), None)
    if rule is None and isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        rule = pointwise
    if rule is None:
        return unknown(flow, node)
    try:
        found = rule(flow, node, _arguments(node))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # a form of the operation that its rule does not know
        return unknown(flow, node)
    return found if _shaped(found, node.meta.get("val")) else unknown(flow, node)


def pointwise(flow: Flow, node: fx.Node, _: Arguments) -> list[Axis]:
    """All tensors are broadcast against one another."""
    return broadcast([flow.axes(source) for source in node.all_input_nodes], node.meta["val"].ndim)


def same(flow: Flow, node: fx.Node, a: Arguments) -> list[Axis]:
    """The result is laid out as the first input."""
    return list(flow.axes(first(a)))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy", "type_as", "lift_fresh_copy", "feature_dropout"), same),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like", "rand_like"), same),
    **dict.fromkeys(("where", "masked_fill", "clamp", "pow", "float_power"), pointwise),
    **dict.fromkeys(("mm", "bmm", "matmul"), layers.matmul),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"), layout.reshaped),
    **dict.fromkeys(("expand", "repeat", "expand_as"), layout.expanded),
    **dict.fromkeys(("t", "numpy_T", "transpose", "permute", "swapaxes"), layout.permuted),
    **dict.fromkeys(("cat", "concat", "concatenate"), layout.concatenated),
    **dict.fromkeys(("split", "chunk", "split_with_sizes", "tensor_split"), layout.divided),
    **dict.fromkeys(("select", "unbind"), layout.selected),
    **dict.fromkeys(("slice", "narrow", "constant_pad_nd", "pad"), layout.resized),
    **dict.fromkeys(("roll", "flip", "cumsum"), layout.ordered),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), layout.softmax),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "logsumexp", "argmax", "argmin", "any", "all"), layout.reduction),
    **dict.fromkeys(("layer_norm", "rms_norm"), layers.layer_norm),
    "linear": layers.linear,
    "addmm": layers.addmm,
    "scaled_dot_product_attention": layers.attention,
    "batch_norm": layers.batch_norm,
    "instance_norm": layers.batch_norm,
    "group_norm": layers.group_norm,
    "embedding": layers.embedding,
    "prelu": layers.prelu,
    "repeat_interleave": layout.repeated,
    "stack": layout.stacked,
    "glu": layout.gated,
    "index": layout.indexed,
    "einsum": layers.einsum,
}
FAMILIES: tuple[tuple[str, Rule], ...] = (
    (r"conv[123]d", layers.convolution),
    (r"conv_transpose[123]d", layers.transposed_convolution),
    (r"(adaptive_)?(avg|max)_pool[123]d(_with_indices)?|upsample_\w+[123]d", layout.windowed),
)


def _shaped(found: Any, value: Any) -> bool:
    """Whether axes have the sizes of the tensor, or tensors, they are of."""
    if isinstance(value, tuple | list):
        return len(found) == len(value) and all(_shaped(axes, one) for axes, one in zip(found, value, strict=True))
    return not isinstance(value, torch.Tensor) or [axis.size for axis in found] == list(value.shape)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of an operation by the names of its schema, defaults included."""
    schema: Any = node.target._schema.arguments  # type: ignore[union-attr]
    named = {one.name: one.default_value for one in schema}
    named.update(dict(zip((one.name for one in schema), node.args, strict=False)))
    return {**named, **node.kwargs}
