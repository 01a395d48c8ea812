"""Whole blocks that can be left out: those with a shortcut around them whose output looks like their input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from lissome.compress.prune.flow import operation
from lissome.compress.prune.groups import Group, LeftAlone
from lissome.nn.call import call

MIXING = ("linear", "addmm", "mm", "bmm", "matmul", "einsum", "scaled_dot_product_attention", "embedding")
"""Operations that a shortcut does not go through; convolutions besides."""
Calls = dict[str, list[tuple[torch.Tensor, torch.Tensor]]]


def block_groups(module: nn.Module, program: torch.export.ExportedProgram, example: Mapping[str, torch.Tensor]) -> tuple[list[Group], list[LeftAlone]]:
    """One group for every list of blocks, its units the blocks that can be left out, and the blocks that cannot."""
    lists = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.ModuleList | nn.Sequential) and _alike(layer)}
    watched = [f"{name}.{key}" for name, container in lists.items() for key in container._modules]
    with calls(module, watched) as seen, torch.no_grad():
        call(module, example)
    groups, left = [], []
    for name, container in lists.items():
        kept = {at: _needed(seen, program, name, list(container._modules), at) for at in range(len(container))}
        free = tuple(at for at, reason in kept.items() if not reason)
        if free:
            sizes = [sum(weight.numel() for weight in container[at].parameters()) for at in free]
            groups.append(Group(name, "blocks", len(free), sum(sizes) // len(sizes), exact=False, blocks=free, least=int(len(free) == len(container))))
            left += [LeftAlone(f"{name}.{at}", 1, reason) for at, reason in kept.items() if reason]
    return groups, left


@contextmanager
def calls(module: nn.Module, names: list[str]) -> Iterator[Calls]:
    """Record the first tensor that goes into each named layer and the first that comes out, call by call, while the context lasts."""
    seen: Calls = {}

    def keep(name: str) -> Any:
        def hook(_layer: Any, args: Any, named: Any, output: Any) -> None:
            given = _first_tensor((*args, *named.values()))
            made = _first_tensor(output)
            if given is not None and made is not None:
                seen.setdefault(name, []).append((given, made))

        return hook

    handles = [module.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skipped(module: nn.Module, name: str) -> Iterator[None]:
    """Let the block `name` give back what goes into it while the context lasts, as if it were not there."""

    def hook(_layer: Any, args: Any, named: Any, output: Any) -> Any:
        given = _first_tensor((*args, *named.values()))
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handle = module.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _alike(container: nn.ModuleList | nn.Sequential) -> bool:
    """Whether it holds at least two blocks (layers made of layers) of one class."""
    kinds = [type(child) for child in container if list(child.children())]
    return len(kinds) > len(set(kinds))


def _needed(seen: Calls, program: torch.export.ExportedProgram, name: str, keys: list[str], at: int) -> str:
    """Why the block must stay; "" when it need not."""
    mine = seen.get(f"{name}.{keys[at]}", [])
    if len(mine) != 1:
        return "it is not called exactly once"
    given, made = mine[0]
    if given.shape != made.shape:
        return "its output has another shape than its input"
    if at + 1 < len(keys) and not any(one[0] is made for one in seen.get(f"{name}.{keys[at + 1]}", [])):
        return "its output is not simply the next block's input"
    return "" if _has_shortcut(program, f"module.{name}.{keys[at]}" if name else f"module.{keys[at]}") else "no shortcut leads around it"


def _has_shortcut(program: torch.export.ExportedProgram, block: str) -> bool:
    """Whether the input of a block reaches its output through nothing that mixes units."""
    inside: set[fx.Node] = {node for node in program.graph.nodes if any(entry[0] == block for entry in (node.meta.get("nn_module_stack") or {}).values())}
    waiting = [node for node in inside if any(user not in inside for user in node.users)]
    passed = set(waiting)
    shapes = {node.meta["val"].shape for node in waiting if isinstance(node.meta.get("val"), torch.Tensor)}
    while waiting:
        node = waiting.pop()
        own = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace != "aten"  # what it does is not known, so it may mix
        if own or operation(node) in MIXING or operation(node).startswith("conv"):
            continue
        for source in node.all_input_nodes:
            made = source.op == "call_function" or source.name in program.graph_signature.user_inputs
            if source not in inside and made and getattr(source.meta.get("val"), "shape", None) in shapes:
                return True
            if source in inside and source not in passed:
                passed.add(source)
                waiting.append(source)
    return False


def _first_tensor(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return next((part for part in value if isinstance(part, torch.Tensor)), None) if isinstance(value, tuple | list) else None
