"""Make a freshly built module as small as a pruned one, so that the pruned weights fit into it. Needs no pruning code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lissome.core.errors import BadModel
from lissome.core.model import Resize

PLAN = "architecture.json"


def resize(module: nn.Module, plan: Resize) -> None:
    """Change `module` in place: drop blocks, set attributes, give tensors their shapes (their values are whatever memory held).

    A plan may come from someone else, so it can only shrink: it sets attributes that are whole numbers already, and to no more than they were.
    Raises BadModel for a plan that does not fit the module.
    """
    for name, kept in plan.blocks.items():
        keep_blocks(module, name, kept)
    for name, values in plan.attributes.items():
        layer = _submodule(module, name)
        for attribute, value in values.items():
            set_size(layer, name, attribute, value)
    before = tensors(module)
    for name, shape in plan.shapes.items():
        if name not in before:
            raise _unfit(f'names the weight "{name}", which {type(module).__name__} does not have')
        old = tuple(before[name].shape)
        if len(old) != len(shape) or not all(1 <= new <= size for new, size in zip(shape, old, strict=True)):
            raise _unfit(f'gives "{name}" the shape {list(shape)}, but it is built as {list(old)}')
    replace_tensors(module, {name: before[name].new_empty(shape) for name, shape in plan.shapes.items()})


def keep_blocks(module: nn.Module, name: str, kept: Sequence[int]) -> None:
    """Keep only the children at the positions `kept` of the ModuleList or Sequential `name`, in place.

    Numbered children are numbered anew, and so is `layer_idx`, by which transformers' layers find their place in a cache.
    """
    container = _submodule(module, name)
    if not isinstance(container, nn.ModuleList | nn.Sequential):
        raise _unfit(f'drops blocks of "{name}", which is a {type(container).__name__}, not a list of blocks')
    if not kept or list(kept) != sorted(set(kept)) or not (kept[0] >= 0 and kept[-1] < len(container)):
        raise _unfit(f'keeps the blocks {list(kept)} of "{name}", which has {len(container)}')
    keys = list(container._modules)
    numbered = all(key.isdigit() for key in keys)
    children = [(keys[old], container[old]) for old in kept]
    for new, (old, (_, child)) in enumerate(zip(kept, children, strict=True)):
        for layer in child.modules():
            if type(getattr(layer, "layer_idx", None)) is int and layer.layer_idx == old:
                layer.layer_idx = new  # type: ignore[assignment]
    container._modules.clear()
    for new, (key, child) in enumerate(children):
        container._modules[str(new) if numbered else key] = child


def set_size(layer: nn.Module, name: str, attribute: str, value: int | tuple[int, ...]) -> None:
    """Set an attribute that holds a whole number, or a tuple of them, to one that is not larger."""
    old: Any = getattr(layer, attribute, None)
    before: Any = old if isinstance(old, tuple) else (old,)
    after: Any = value if isinstance(value, tuple) else (value,)
    if attribute not in vars(layer) or type(old) is not type(value) or len(before) != len(after) or any(type(size) is not int for size in (*before, *after)):
        raise _unfit(f'sets "{attribute}" of "{name}" to {value}, but it is {old!r}')
    if not all(1 <= new <= size for new, size in zip(after, before, strict=True)):
        raise _unfit(f'sets "{attribute}" of "{name}" to {value}; it is built as {old}, and pruning only makes it smaller')
    setattr(layer, attribute, value)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers by name; a tensor that goes by several names (tied weights) is there under each."""
    saved = set(module.state_dict(keep_vars=True))
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: tensor for name, tensor in named if name in saved}


def replace_tensors(module: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Put `values` in the place of parameters and buffers. Tied weights stay tied: the value goes wherever the old tensor was."""
    places: dict[int, list[str]] = {}
    before = tensors(module)
    for name, tensor in before.items():
        places.setdefault(id(tensor), []).append(name)
    for name, value in values.items():
        old = before[name]
        made = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        for place in places.pop(id(old), ()):  # popped: under its second name a tied weight is done already
            owner, _, attribute = place.rpartition(".")
            held: Any = module.get_submodule(owner)
            (held._parameters if isinstance(old, nn.Parameter) else held._buffers)[attribute] = made


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise _unfit(f'names the layer "{name}", which {type(module).__name__} does not have') from None


def _unfit(what: str) -> BadModel:
    return BadModel(
        f"the pruning plan {what}.",
        where=PLAN,
        expected="the plan that was written for this model",
        do="use the versions of torch, transformers and your own code that the model was pruned with, or prune it again",
    )
