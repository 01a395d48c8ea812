"""Follow every dimension of a model through its traced graph, so that it is known which ones are the same."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from lissome.compress.prune.axes import Axis
from lissome.nn.resize import tensors

INPUT, OUTPUT, POSITION = "it is the model's input", "it is the model's output", "it counts positions"
ALIKE = "it is one of several equal parts"
CONSTANT = "it meets a constant in the model's code"


@dataclass(frozen=True)
class Produced:
    """A layer that makes units: `axis` is dimension `place` of its output."""

    layer: str
    axis: Axis
    place: int


@dataclass(frozen=True)
class Bound:
    """An attribute of a layer that holds the size of an axis."""

    layer: str
    attribute: str
    axis: Axis


class Flow:
    """What is known of a model's dimensions.

    weights: parameter or saved buffer -> its axes. produced: in the order of execution. bound: attributes that hold sizes.
    known: of each node of the graph, the axes of its tensor, or a list of them for several. opaque: layers that the graph does not show.
    """

    def __init__(self, module: nn.Module, program: torch.export.ExportedProgram, opaque: Collection[str] = ()):
        self.module, self.program, self.opaque = module, program, opaque
        self.weights: dict[str, list[Axis]] = {}
        self.produced: list[Produced] = []
        self.bound: list[Bound] = []
        self.known: dict[fx.Node, Any] = {}
        self._follow()

    def axes(self, node: Any) -> list[Axis]:
        """Axes of a tensor of the graph; none for what is not a tensor."""
        found: list[Axis] = self.known.get(node, []) if isinstance(node, fx.Node) else []
        return found

    def bind(self, node: fx.Node, attribute: str, axis: Axis) -> None:
        """Note that the layer of `node` holds the size of `axis` in `attribute`, if it does."""
        layer = scope(node)
        held = vars(self.module.get_submodule(layer)).get(attribute)
        if axis.size > 1 and (type(held) is int or isinstance(held, tuple)) and held in (axis.size, (axis.size,)):
            self.bound.append(Bound(layer, attribute, axis))

    def bind_like(self, node: fx.Node, word: str, axis: Axis) -> None:
        """`bind` for all attributes whose name holds `word` and which count something, so not `head_dim` or `attention_head_size`."""
        for attribute in vars(self.module.get_submodule(scope(node))):
            if word in attribute and not any(part in attribute for part in ("dim", "head_size")):
                self.bind(node, attribute, axis)

    def produce(self, node: fx.Node, axis: Axis, place: int) -> None:
        """Note that the layer of `node` makes the units of `axis`."""
        self.produced.append(Produced(scope(node), axis, place))

    def is_weight(self, node: Any) -> bool:
        """Whether a value is a parameter, perhaps transposed."""
        if not isinstance(node, fx.Node):
            return False
        if node.op == "placeholder":
            return node.name in self.program.graph_signature.inputs_to_parameters
        return operation(node) in ("t", "transpose", "permute", "to", "contiguous", "detach") and self.is_weight(node.args[0])

    def _follow(self) -> None:
        from lissome.compress.prune.operators import follow

        signature = self.program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        held = self._held()
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in names:
                name = names[node.name].removeprefix("module.")
                self.known[node] = held[name] if name in held else constant(node, CONSTANT)
            elif node.op == "placeholder":
                self.known[node] = constant(node, INPUT if node.name in signature.user_inputs else CONSTANT)
            elif node.op == "get_attr":
                self.known[node] = constant(node, CONSTANT)
            elif node.op == "call_function":
                self.known[node] = self.known[node.args[0]][node.args[1]] if node.target is operator.getitem else follow(self, node)
            elif node.op == "output":
                for result in node.all_input_nodes:
                    for axis in self.axes(result):
                        axis.keep(OUTPUT)

    def _held(self) -> dict[str, list[Axis]]:
        """Fresh axes for every tensor of the module; tied ones share theirs, and those that overlap in memory are left alone."""
        byid: dict[int, list[Axis]] = {}
        storages: dict[int, str] = {}
        found: dict[str, list[Axis]] = {}
        for name, tensor in tensors(self.module).items():
            axes = byid.setdefault(id(tensor), [Axis(size) for size in tensor.shape])
            first = storages.setdefault(tensor.untyped_storage().data_ptr() if tensor.numel() else id(tensor), name)
            reason = _untouchable(self.module, name, self.opaque)
            if first != name and found[first] is not axes:
                reason = f"it shares its memory with {first}"
                for axis in found[first]:
                    axis.keep(f"it shares its memory with {name}")
            for axis in axes if reason else ():
                axis.keep(reason or "")
            found[name] = axes
            if name not in self.weights and not any(held is axes for held in self.weights.values()):
                self.weights[name] = axes
        return found


def scope(node: fx.Node) -> str:
    """Name of the module in whose forward an operation stands."""
    stack = node.meta.get("nn_module_stack") or {}
    path: str = list(stack.values())[-1][0] if stack else ""
    return path.removeprefix("module").removeprefix(".")


def operation(node: fx.Node) -> str:
    """Name of an ATen operation, its in-place form the same: "linear", "relu"."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return ""
    name = node.target._schema.name.removeprefix("aten::")
    return name.removesuffix("_") if not name.startswith("_") and name != "_" else name


def constant(node: fx.Node, reason: str) -> Any:
    """Axes that are never pruned for every dimension of a result; a list of them for several results."""

    def one(value: Any) -> list[Axis]:
        return [Axis(int(size), reason=reason) for size in value.shape] if isinstance(value, torch.Tensor) else []

    value = node.meta.get("val")
    return [one(part) for part in value] if isinstance(value, tuple | list) else one(value)


def _untouchable(module: nn.Module, name: str, opaque: Collection[str]) -> str | None:
    """Why the layers around a tensor do not let it be pruned."""
    path = name.split(".")[:-1]
    for depth in range(1, len(path) + 1):
        around = ".".join(path[:depth])
        layer = module.get_submodule(around)
        if around in opaque:
            return f"the layer {around} uses it, which cannot be traced"
        if isinstance(layer, nn.MultiheadAttention):
            return "torch's MultiheadAttention takes the width of a head from that of its input"
    return None
