"""The graph of one call. Layers that cannot be traced stand in it as one operation each, so that the rest of the model can be followed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from lissome.core.errors import BadModel
from lissome.export.onnx import quiet
from lissome.nn.call import Positional, accepted, call, unfused

DATA = "data-dependent"
"""What torch's errors say of code that asks for values where only shapes are known."""


def trace(module: nn.Module, example: Mapping[str, torch.Tensor]) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    """The graph of one call, its sizes as numbers: a dimension is followed by its size, so none may be left free. And the layers that could not be
    traced -> why: each is one operation of the graph, see `untraced`.

    The innermost layer whose code fails is taken out and the rest traced again, until all of it is. Raises BadModel with torch's reason when it is the
    model's own code that fails.
    """
    opaque: dict[str, str] = {}
    while True:
        with _running(module) as running:
            try:
                return _exported(module, example, opaque, running), opaque
            except Exception as error:  # whatever the model's own code or torch's tracer raises
                inner = next((name for name in reversed(running) if name and name not in opaque), "")
                reason = _reason(error)
                if not inner:
                    raise BadModel(
                        f"the model cannot be traced, so nothing in it can be pruned: {reason}.",
                        where=f"the forward of {type(module).__name__} itself",
                        expected="a forward without control flow that depends on data",
                        do="move that code into a layer of its own, which is then left alone, or prune the part of the model that is without it",
                    ) from error
                opaque[inner] = f"it cannot be traced: {reason}"


def untraced(node: fx.Node) -> str:
    """Name of the layer that an operation of the graph stands for; "" for an operation of its own."""
    return str(node.args[-1]) if node.target is torch.ops.lissome.untraced.default else ""


def _exported(module: nn.Module, example: Mapping[str, torch.Tensor], opaque: Iterable[str], running: list[str]) -> torch.export.ExportedProgram:
    """One attempt, with the layers `opaque` taken out. running: what `_running` gives."""
    names = accepted(module, tuple(example))
    with torch.no_grad(), unfused(), _taken_out(module, example, opaque), quiet():  # where it fails torch prints the whole graph; a line says enough
        program = torch.export.export(Positional(module, names), tuple(example[name] for name in names), strict=False)
    for node in program.graph.nodes:
        made = [value for value in pytree.tree_leaves(node.meta.get("val")) if isinstance(value, torch.Tensor)]
        if any(not isinstance(size, int) for value in made for size in value.shape):
            running[:] = [path.removeprefix("module").removeprefix(".") for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
            raise ValueError(f"a {DATA} shape")
    return program


@contextmanager
def _running(module: nn.Module) -> Iterator[list[str]]:
    """The layers whose code runs, the innermost last; after an error, those that ran when it was raised."""
    running: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leave(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            while running.pop() != name:
                pass  # layers whose errors the code around them has caught

        return hook

    layers = dict(module.named_modules()).items()
    handles = [handle for name, layer in layers for handle in (layer.register_forward_pre_hook(enter(name)), layer.register_forward_hook(leave(name)))]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _taken_out(module: nn.Module, example: Mapping[str, torch.Tensor], names: Iterable[str]) -> Iterator[None]:
    """Let the named layers give tensors of the shapes that they give for the example, by one operation, instead of running their code."""
    layers = {name: module.get_submodule(name) for name in names}
    outputs: dict[str, list[Any]] = {name: [] for name in layers}

    def record(name: str) -> Callable[..., None]:
        return lambda _layer, _given, output: outputs[name].append(output)

    handles = [layer.register_forward_hook(record(name)) for name, layer in layers.items()]
    try:
        if layers:
            call(module, example)
    finally:
        for handle in handles:
            handle.remove()
    before = {name: vars(layer).get("forward") for name, layer in layers.items()}
    for name, layer in layers.items():
        vars(layer)["forward"] = _stand_in(name, outputs[name])
    try:
        yield
    finally:
        for name, layer in layers.items():
            del vars(layer)["forward"]
            if before[name] is not None:
                vars(layer)["forward"] = before[name]


def _stand_in(name: str, outputs: list[Any]) -> Callable[..., Any]:
    """A forward that gives `outputs`, call by call, as the operation `untraced` makes them from all tensors that go in."""
    following = itertools.cycle(outputs)

    def forward(*args: Any, **named: Any) -> Any:
        given = [value for value in pytree.tree_leaves((args, named)) if isinstance(value, torch.Tensor)]
        made = torch.ops.lissome.untraced
        return pytree.tree_map_only(torch.Tensor, lambda value: made(given, list(value.shape), value.dtype, value.device, name), next(following))

    return forward


def _like(given: list[torch.Tensor], shape: list[int], dtype: torch.dtype, device: torch.device, layer: str) -> torch.Tensor:
    """A tensor of that kind, its values without meaning: only the graph is of use."""
    return torch.empty(shape, dtype=dtype, device=device)


torch.library.custom_op(
    "lissome::untraced", _like, mutates_args=(), schema="(Tensor[] given, SymInt[] shape, ScalarType dtype, Device device, str layer) -> Tensor"
).register_fake(_like)


def _reason(error: Exception) -> str:
    """Why code could not be traced, in a line."""
    text = str(error)
    if DATA in text:
        return "its control flow, a number or a shape depends on the data"
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:300].rstrip(".")
