"""Where a model's blocks are, and what goes in and out of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lissome.core.errors import BadModel


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
    for kind in (nn.ModuleList, nn.Sequential):
        lists = [(at, one) for at, one in module.named_modules() if isinstance(one, kind) and len(one) > 1]
        if lists:
            at, chosen = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
            return at, list(chosen)
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


def each_tensor(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with all tensors in it (tuples, lists and dicts are looked into) as `change` gives them."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(each_tensor(one, change) for one in value)
    if type(value) is dict:
        return {key: each_tensor(one, change) for key, one in value.items()}
    return value
