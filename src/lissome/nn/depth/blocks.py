"""Where a model's blocks are, and what goes in and out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lissome.core.errors import BadModel
from lissome.nn.call import call, unfused

Change = Callable[[str, torch.Tensor], torch.Tensor]
"""(place, tensor) -> tensor."""
OUTPUT = "output"
"""Place of what a block gives; of what stands in it, "output.0" and so on."""


def largest_list(module: nn.Module, least: int = 2) -> tuple[str, nn.ModuleList | nn.Sequential] | None:
    """Name and module of the ModuleList of at least so many, else the Sequential of two or more, that holds the most parameters; None without one."""
    for kind, most in ((nn.ModuleList, least), (nn.Sequential, 2)):
        lists: list[tuple[str, Any]] = [(at, one) for at, one in module.named_modules() if isinstance(one, kind) and len(one) >= most]
        if lists:
            return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    return None


def find_blocks(module: nn.Module, name: str | None = None) -> tuple[str, list[nn.Module]]:
    """Name and children of the list of blocks: `name`, or the ModuleList (else Sequential) of two blocks or more that holds the most parameters.

    Raises BadModel where there is none, or `name` is no list of blocks.
    """
    if name is not None:
        found = dict(module.named_modules()).get(name)
        if not isinstance(found, nn.ModuleList | nn.Sequential) or len(found) < 2:
            what = "no such module" if found is None else f"a {type(found).__name__}"
            raise BadModel(f'"{name}" is no list of blocks: {what}', expected="the name of a ModuleList or Sequential of at least two blocks")
        return name, list(found)
    largest = largest_list(module)
    if largest is not None:
        return largest[0], list(largest[1])
    raise BadModel(
        f"no blocks were found in {type(module).__name__}: it has no ModuleList and no Sequential of two blocks or more",
        do="keep the blocks in a ModuleList, or name the list",
    )


def hidden_of(output: Any) -> torch.Tensor:
    """What a block hands to the next one: its output, or the first of it. Raises BadModel for anything else."""
    first = output[0] if isinstance(output, tuple | list) and len(output) else output
    if not isinstance(first, torch.Tensor) or first.ndim < 2:
        raise BadModel(f"a block gives {type(output).__name__}", expected="a tensor [examples, ...], or a tuple that begins with one")
    return first


def each_tensor(value: Any, change: Change, place: str = "") -> Any:
    """`value` with all tensors in it (tuples, lists and dicts are looked into) as `change` gives them; places are such as "padding" and "angles.0"."""
    if isinstance(value, torch.Tensor):
        return change(place, value)
    if type(value) in (tuple, list):
        return type(value)(each_tensor(one, change, f"{place}.{at}" if place else str(at)) for at, one in enumerate(value))
    if type(value) is dict:
        return {key: each_tensor(one, change, f"{place}.{key}" if place else str(key)) for key, one in value.items()}
    return value


def each_argument(args: tuple[Any, ...], kwargs: dict[str, Any], change: Change) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`each_tensor` of a block's arguments: the first by position is at "0"."""
    return each_tensor(args, change), each_tensor(kwargs, change)


def each_output(output: Any, change: Change) -> Any:
    """`each_tensor` of what a block gives."""
    return each_tensor(output, change, OUTPUT)


@torch.no_grad()
def fixed_places(module: nn.Module, example: Mapping[str, torch.Tensor], blocks: str | None = None) -> tuple[str, ...]:
    """Places among the blocks' arguments and outputs whose first size does not follow the batch's, such as those of positions; in order of name.

    example: a batch of named inputs. The module runs twice, in eval mode, the second time with the first row once more.
    """
    _, every = find_blocks(module, blocks)
    rows = next((len(one) for one in example.values() if one.ndim), 0)
    longer = {name: torch.cat([one, one[:1]]) if one.ndim and len(one) == rows else one for name, one in example.items()}
    sizes: list[dict[tuple[int, str], int]] = [{}, {}]
    training = module.training
    for found, inputs in zip(sizes, (example, longer), strict=True):
        handles = [hook for at, block in enumerate(every) for hook in _measured(block, at, found)]
        try:
            with unfused():
                call(module.eval(), inputs)
        finally:
            module.train(training)
            for handle in handles:
                handle.remove()
    follows = {place for (at, place), size in sizes[0].items() if (size, sizes[1].get((at, place))) == (rows, rows + 1)}
    return tuple(sorted({place for _, place in sizes[0]} - follows))


def _measured(block: nn.Module, at: int, sizes: dict[tuple[int, str], int]) -> tuple[Any, Any]:
    """Hooks that note the first size of each of a block's tensors by (its number, place)."""

    def note(place: str, value: torch.Tensor) -> torch.Tensor:
        if value.ndim:
            sizes[at, place] = len(value)
        return value

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        each_argument(args, kwargs, note)

    def after(_: nn.Module, __: Any, output: Any) -> None:
        each_output(output, note)

    return block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after)
