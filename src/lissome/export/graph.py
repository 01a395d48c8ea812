"""Editing an ONNX graph node by node: which nodes compute a layer, what they multiply by, and what is put in their place."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from lissome.export.onnx import SCOPES

PASSES_ON = ("Transpose", "Identity", "Cast")
"""What may stand between a weight and the product that uses it."""


def scope_of(node: Any) -> str:
    """Name of the module in which the node was made; "" where the exporter did not say."""
    scopes = next((p.value for p in node.metadata_props if p.key == SCOPES), None)
    path = ast.literal_eval(scopes) if scopes else []
    return path[-2].removeprefix("module.") if len(path) >= 2 else ""


class Uint8(NamedTuple):
    """Names of a rounded activation, its scale and its zero point."""

    name: str
    scale: str
    zero: str


class Edits:
    """A graph that is being rewritten, from its first node to its last.

    `replace` says what stands in a node's place; `constant` adds a weight; `finish` writes it all back and drops what nothing uses any more.
    """

    def __init__(self, model: Any):
        from onnx import numpy_helper

        self.model, self.graph = model, model.graph
        self.read = numpy_helper.to_array
        self.initial = {tensor.name: tensor for tensor in self.graph.initializer}
        self.maker = {name: node for node in self.graph.node for name in node.output}
        self.places: dict[str, list[Any]] = {}
        self.added: dict[str, Any] = {}
        self.quantized: dict[tuple[str, float, int], Uint8] = {}
        self.domains: set[str] = set()

    def weight(self, name: str) -> np.ndarray | None:
        """The constant behind a value, with any transposition done; None when it is no constant."""
        if name in self.initial:
            array: np.ndarray = self.read(self.initial[name])
            return array
        node = self.maker.get(name)
        if node is None or node.op_type not in (*PASSES_ON, "Constant"):
            return None
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            return None if value is None else self.read(value)
        inner = self.weight(node.input[0])
        if inner is None or node.op_type != "Transpose":
            return inner
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        return inner.transpose(order)

    def bias_after(self, node: Any) -> tuple[Any, str] | None:
        """The one Add that uses the node's result, and the vector it adds; None where something else happens to the result."""
        users = [user for user in self.graph.node if node.output[0] in user.input]
        if len(users) != 1 or users[0].op_type != "Add" or any(one.name == node.output[0] for one in self.graph.output):
            return None
        other = next((name for name in users[0].input if name != node.output[0]), "")
        array = self.read(self.initial[other]) if other in self.initial else None
        return (users[0], other) if array is not None and array.ndim == 1 and array.dtype == np.float32 else None

    def constant(self, name: str, array: np.ndarray | np.generic, kind: int | None = None) -> str:
        """Add an initializer under a fresh name; return that name, or that of the same one, where a layer that is called again asks for it again.

        kind: its ONNX type where numpy has none (its bytes are then `array`'s).
        """
        from onnx import TensorProto, numpy_helper

        if kind is None:
            tensor = numpy_helper.from_array(np.array(array, order="C"), name)  # ascontiguousarray would make scalars into vectors
        else:
            tensor = TensorProto(name=name, data_type=kind, dims=array.shape, raw_data=array.tobytes())
        while tensor.name in self.added or tensor.name in self.initial:
            if self.added.get(tensor.name) == tensor:  # type, shape and bytes
                return str(tensor.name)
            tensor.name += "_"
        self.added[tensor.name] = tensor
        return str(tensor.name)

    def node(self, kind: str, inputs: Iterable[str], outputs: Iterable[str], domain: str = "", **attributes: Any) -> Any:
        """A new node, named for its first output."""
        from onnx import helper

        outputs = list(outputs)
        self.domains |= {domain} - {""}
        return helper.make_node(kind, list(inputs), outputs, name=f"{outputs[0]}_{kind}", domain=domain, **attributes)

    def copy(self, node: Any, inputs: Iterable[str], outputs: Iterable[str] | None = None) -> Any:
        """The node with other inputs (and outputs), its attributes and scope kept."""
        made = type(node)()
        made.CopyFrom(node)
        del made.input[:]
        made.input.extend(inputs)
        if outputs is not None:
            del made.output[:]
            made.output.extend(outputs)
        return made

    def replace(self, node: Any, nodes: list[Any]) -> None:
        """Put `nodes` in the place of `node`."""
        self.places[node.output[0]] = nodes

    def finish(self) -> Any:
        """The rewritten model."""
        from onnx import helper

        nodes = [new for node in self.graph.node for new in self.places.get(node.output[0], [node])]
        needed, kept = {one.name for one in self.graph.output}, []
        for node in reversed(nodes):
            if not needed.isdisjoint(node.output):
                kept.append(node)
                needed.update(node.input)
        del self.graph.node[:]
        self.graph.node.extend(reversed(kept))
        tensors = [tensor for name, tensor in {**self.initial, **self.added}.items() if name in needed]
        del self.graph.initializer[:]
        self.graph.initializer.extend(tensors)
        del self.graph.value_info[:]  # says of some values that they are float which no longer are, or are gone
        known = {entry.domain for entry in self.model.opset_import}
        self.model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(self.domains - known))
        return self.model
