"""Who feeds whom: the data flow between a module's layers, read from a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from lissome.compress.batches import inputs_of
from lissome.core.errors import BadModel
from lissome.nn.call import Positional, accepted, unfused

Node = fx.Node
RELU = ("relu", "relu_", "relu6", "hardtanh", "hardtanh_")
"""What engines fold into the product before it, or into the rounding after it."""
NOTHING = ("dropout", "dropout_", "clone", "contiguous", "alias", "detach")
"""What changes no value in eval mode."""
RESHAPES = ("view", "reshape", "transpose", "permute", "_unsafe_view", "flatten", "unflatten", *NOTHING)


@dataclass(frozen=True)
class Wiring:
    """The nodes that use each layer's weight, and back."""

    calls: dict[str, list[Node]]
    layer: dict[Node, str]

    def only_call(self, name: str) -> Node | None:
        """The node of a layer that is called exactly once."""
        nodes = self.calls.get(name, [])
        return nodes[0] if len(nodes) == 1 else None


def operator(node: Node) -> str:
    """ "linear" for torch.ops.aten.linear.default; "" for what is no operator."""
    name = getattr(node.target, "_opname", None) or getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    return str(name) if node.op == "call_function" else ""


def trace(module: nn.Module, batch: Any) -> Wiring:
    """Trace the module on a batch. Raises BadModel with torch's reason when it cannot be traced."""
    inputs = inputs_of(batch)
    names = accepted(module, tuple(inputs))
    try:
        with torch.no_grad(), unfused():
            program = torch.export.export(Positional(module, names), tuple(inputs[name] for name in names), strict=False)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BadModel(
            f"the model cannot be traced by torch.export: {reason[:300]}",
            do="remove data-dependent control flow; int8-dynamic and weight-only quantisation need no trace",
        ) from error
    parameters = program.graph_signature.inputs_to_parameters
    calls: dict[str, list[Node]] = {}
    layer: dict[Node, str] = {}
    for node in program.graph.nodes:
        for argument in node.args:
            full = parameters.get(argument.name, "") if isinstance(argument, Node) else ""
            if full.endswith(".weight"):
                name = full.removesuffix(".weight").removeprefix("module.")
                calls.setdefault(name, []).append(node)
                layer[node] = name
    return Wiring(calls, layer)


def beyond(node: Node, passing: tuple[str, ...]) -> Iterator[Node]:
    """The nodes that use `node`'s value, looking through operators in `passing`."""
    for user in node.users:
        if operator(user) in passing:
            yield from beyond(user, passing)
        else:
            yield user


def source(value: Any, passing: tuple[str, ...]) -> Node | None:
    """The node that made `value`, looking back through operators in `passing`; None when another node uses a value on the way."""
    while isinstance(value, Node):
        if len(value.users) != 1:
            return None
        if operator(value) not in passing:
            return value
        value = value.args[0]
    return None


def feeds_only(node: Node, passing: tuple[str, ...], takes: Callable[[Node], bool]) -> bool:
    """Whether all that uses `node`'s value, looking through `passing`, satisfies `takes`."""
    users = list(beyond(node, passing))
    return bool(users) and all(takes(user) for user in users)
