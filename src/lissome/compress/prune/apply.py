"""Remove units from a model: the result is a new, smaller one with the plan that a fresh build needs to become as small."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lissome.compress.prune.groups import Group, Groups
from lissome.core.errors import BadInput, BadModel
from lissome.core.model import Architecture, Model, Resize
from lissome.nn.call import call
from lissome.nn.load import as_model, finished
from lissome.nn.resize import keep_blocks, replace_tensors, set_size, tensors

Keep = Mapping[str, Sequence[int]]


def apply(model: Model | nn.Module, groups: Groups, keep: Keep) -> Model:
    """`model` without the units that `keep` does not name; the model given is left as it was.

    groups: of this very model. keep: group -> the units that stay, in any order; groups that are not named stay whole.
    Raises BadInput for a keep that does not fit the groups, BadModel when the smaller model does not run as the original does.
    """
    model = model if isinstance(model, Model) else as_model(copy.deepcopy(model))
    if groups.fingerprint != model.fingerprint:
        raise BadInput("the groups are of another model, or of this one before it was changed.", where=model.ref, do="groups(model, example) finds them anew")
    kept = {name: _checked(groups[name], units) for name, units in keep.items()}
    blocks = {name: _positions(model.module, groups[name], units) for name, units in kept.items() if groups[name].kind == "blocks"}
    module = copy.deepcopy(model.module)
    shapes, attributes = cut(module, [(groups[name], units) for name, units in kept.items()])
    architecture = _drop(module, model.architecture, blocks, shapes, attributes)
    smaller = finished(module, architecture, model.ref, model.directory)
    _check_output(smaller, groups)
    return smaller


def cut(module: nn.Module, kept: Sequence[tuple[Group, Sequence[int]]]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Remove channels, heads and neurons from `module` in place. Returns the tensors that changed, and the attributes with their values."""
    masks: dict[tuple[str, int | str], np.ndarray] = {}
    for group, units in kept:
        for member in group.members:
            stays = (member.labels < 0) | np.isin(member.labels, np.asarray(units))
            masks[member.owner, member.place] = masks.get((member.owner, member.place), True) & stays
    before = tensors(module)
    values: dict[str, torch.Tensor] = {}
    attributes: dict[str, dict[str, Any]] = {}
    for (owner, place), mask in masks.items():
        if mask.all():
            continue
        if isinstance(place, int):
            whole = values.get(owner, before[owner].detach())
            values[owner] = whole.index_select(place, torch.from_numpy(np.flatnonzero(mask)).to(whole.device))
        else:
            size = int(mask.sum())
            old = getattr(module.get_submodule(owner), place)
            attributes.setdefault(owner, {})[place] = (size,) if isinstance(old, tuple) else size
    replace_tensors(module, values)
    for owner, sizes in attributes.items():
        for attribute, size in sizes.items():
            set_size(module.get_submodule(owner), owner, attribute, size)
    changed = {id(before[name]) for name in values}
    return [name for name, tensor in before.items() if id(tensor) in changed], attributes


def _drop(
    module: nn.Module, architecture: Architecture, blocks: Mapping[str, tuple[int, ...]], changed: Sequence[str], attributes: dict[str, dict[str, Any]]
) -> Architecture:
    """Drop blocks from `module` in place; return the architecture with the plan of everything that was done, now and before."""
    before = architecture.resize or Resize()
    names = {*changed, *before.shapes}
    merged = {owner: {**before.attributes.get(owner, {}), **attributes.get(owner, {})} for owner in (*before.attributes, *attributes)}
    plan = dict(before.blocks)
    for name in sorted(blocks, key=len, reverse=True):  # inner lists first: their names change when the outer ones are cut
        kept, total = blocks[name], len(module.get_submodule(name)._modules)
        keep_blocks(module, name, kept)
        names = {new for old in names if (new := _renamed(old, name, kept))}
        merged = {new: values for old, values in merged.items() if (new := _renamed(old, name, kept))}
        if not _shorten(module, total, len(kept), kept):
            first = _as_built(name, before.blocks)
            plan[first] = tuple(before.blocks[first][at] for at in kept) if first in before.blocks else kept
    now = tensors(module)
    resize = Resize(blocks=plan, attributes=merged, shapes={name: tuple(now[name].shape) for name in now if name in names})
    config: Any = getattr(module, "config", None)
    whole = json.loads(config.to_json_string(use_diff=False)) if architecture.kind == "huggingface" else architecture.config
    return architecture.model_copy(update={"resize": resize, "config": whole})


def _renamed(name: str, container: str, kept: Sequence[int]) -> str | None:
    """What a tensor or layer is called after `container` was cut; None when it is gone."""
    start = f"{container}."
    if not name.startswith(start):
        return name
    key, dot, rest = name[len(start) :].partition(".")
    if not key.isdigit():
        return name
    return f"{start}{list(kept).index(int(key))}{dot}{rest}" if int(key) in kept else None


def _as_built(name: str, blocks: Mapping[str, tuple[int, ...]]) -> str:
    """What a list of blocks is called in a fresh build, before the lists around it were cut."""
    for outer, kept in sorted(blocks.items(), key=lambda item: len(item[0])):
        if name.startswith(f"{outer}."):
            key, dot, rest = name[len(outer) + 1 :].partition(".")
            name = f"{outer}.{kept[int(key)]}{dot}{rest}" if key.isdigit() else name
    return name


def _shorten(module: nn.Module, total: int, count: int, kept: Sequence[int]) -> bool:
    """Let a transformers config say the new depth, where it said the old one of a single stack; the class then builds it by itself."""
    config: Any = getattr(module, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False) or getattr(config, "num_hidden_layers", None) != total:
        return False
    config.num_hidden_layers = count
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list) and len(kinds) == total:
        config.layer_types = [kinds[at] for at in kept]
    return True


def _checked(group: Group, units: Sequence[int]) -> list[int]:
    found = sorted({int(unit) for unit in units})
    if len(found) < group.least:
        raise BadInput(f'nothing of the group "{group.name}" would be left.', expected=f"at least {group.least} of its {group.units} units")
    if found and not (found[0] >= 0 and found[-1] < group.units):
        raise BadInput(f'the group "{group.name}" has no unit {found[-1] if found[-1] >= group.units else found[0]}.', expected=f"0 to {group.units - 1}")
    return found


def _positions(module: nn.Module, group: Group, units: Sequence[int]) -> tuple[int, ...]:
    """Positions in the list that stay: the kept units, and the blocks that are no units."""
    gone = {at for unit, at in enumerate(group.blocks) if unit not in units}
    return tuple(at for at in range(len(module.get_submodule(group.name)._modules)) if at not in gone)


def _check_output(model: Model, groups: Groups) -> None:
    """Raise unless the pruned model gives finite outputs of the original's shape."""
    try:
        with torch.no_grad():
            output = call(model.module, groups.example)
    except Exception as error:  # whatever the model's own code raises when a size is not the one it was written for
        raise BadModel(f"the pruned model does not run: {type(error).__name__}: {error}", where=model.ref, do="leave that group whole") from error
    if tuple(output.shape) != groups.shape or not torch.isfinite(output).all():
        raise BadModel(
            f"the pruned model's output has the shape {list(output.shape)}" + ("" if torch.isfinite(output).all() else " and holds NaN or infinity") + ".",
            where=model.ref,
            expected=f"finite numbers of the shape {list(groups.shape)}",
            do="keep more units",
        )
