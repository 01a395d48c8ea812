"""Find all that can be pruned in a model, and try it: code that fixes a size of its own is found out before anyone relies on it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lissome.compress.prune.apply import cut
from lissome.compress.prune.blocks import block_groups
from lissome.compress.prune.flow import Flow
from lissome.compress.prune.groups import Group, Groups, LeftAlone, unit_groups
from lissome.compress.prune.trace import trace
from lissome.core.errors import BadModel
from lissome.core.model import Model
from lissome.nn.call import accepted, call
from lissome.nn.factory import first_line
from lissome.nn.load import as_model
from lissome.nn.resize import tensors

CLOSE = 1e-3
"""Relative L2 distance of outputs up to which a model without a unit and one with the unit at zero are the same: float32 in another order of sums."""

UNMASK = "find what makes them so; a mask can be a large number such as -1e4 instead of -inf"


def groups(model: Model | nn.Module, example: Mapping[str, Any]) -> Groups:
    """The groups of units that can be removed from `model`, and what cannot be, with the reason.

    example: a batch of named inputs (arrays or tensors), as a task's `collate` gives it. Layers that cannot be traced are left alone. Raises
    BadModel when the model's own code cannot be, or gives something that is not finite.
    """
    model = model if isinstance(model, Model) else as_model(copy.deepcopy(model))
    module = model.module
    inputs = _inputs(module, example)
    shape = _finite_shape(module, inputs)
    program, opaque = trace(module, inputs)
    alone = [LeftAlone(name, 1, reason) for name, reason in opaque.items()]
    units, left = unit_groups(module, Flow(module, program, opaque))
    blocks, needed = block_groups(module, program, inputs)
    working, refused = _tried(module, inputs, units)
    total = sum(weight.numel() for weight in module.parameters())
    return Groups((*working, *blocks), (*alone, *left, *needed, *refused), total, model.fingerprint, inputs, shape)


def silenced(module: nn.Module, cuts: Sequence[tuple[Group, Sequence[int]]]) -> nn.Module:
    """A copy in which all weights of the units that are not kept are zero: what removing them must be equal to, where that is exact.

    cuts: groups with the units that stay.
    """
    quiet = copy.deepcopy(module)
    weights = {name: tensor for name, tensor in tensors(quiet).items() if isinstance(tensor, nn.Parameter)}
    with torch.no_grad():
        for group, kept in cuts:
            for member in group.members:
                gone = np.flatnonzero((member.labels >= 0) & ~np.isin(member.labels, np.asarray(kept)))
                if member.owner in weights and isinstance(member.place, int):
                    weights[member.owner].index_fill_(member.place, torch.from_numpy(gone).to(weights[member.owner].device), 0.0)
    return quiet


def _inputs(module: nn.Module, example: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    tensors_of = {name: torch.as_tensor(value) for name, value in example.items()}
    return {name: tensors_of[name] for name in accepted(module, tuple(tensors_of))}


def _finite_shape(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """Shape of the model's output. Raises BadModel where it is not finite: no cut could then be told from the model that was not cut."""
    with torch.no_grad():
        output = call(module, inputs)
    wrong = int((~torch.isfinite(output)).sum())
    if wrong:
        given = next((name for name, value in inputs.items() if value.is_floating_point() and not torch.isfinite(value).all()), None)
        do = f'look at the example: its input "{given}" is not finite itself' if given else UNMASK
        raise BadModel(
            f"{wrong} of the {output.numel()} numbers that the model gives for the example are NaN or infinite, so no cut can be checked.",
            expected="finite outputs",
            do=do,
        )
    return tuple(output.shape)


def _tried(module: nn.Module, inputs: Mapping[str, torch.Tensor], found: Sequence[Group]) -> tuple[list[Group], list[LeftAlone]]:
    """Remove the last unit of every group and compare. Where that fails, do it family by family: groups of a kind in layers of a class."""
    families: dict[tuple[Any, ...], list[Group]] = {}
    for exact in (True, False):
        alike = [group for group in found if group.exact is exact]
        works = not alike or _failure(module, inputs, alike) is None
        for group in alike:
            families.setdefault((exact,) if works else (exact, group.kind, _around(module, group.name)), []).append(group)
    working, refused = [], []
    for key, family in families.items():
        reason = _failure(module, inputs, family) if len(key) > 1 else None
        if reason is None:
            working += family
        else:
            refused += [LeftAlone(group.name, group.units, f"the code of {key[-1]} does not follow its size: {reason}") for group in family]
    order = {group.name: at for at, group in enumerate(found)}
    return sorted(working, key=lambda group: order[group.name]), refused


def _failure(module: nn.Module, inputs: Mapping[str, torch.Tensor], tried: Sequence[Group]) -> str | None:
    """Why the model without the last unit of each group is not the one with that unit at zero; None when it is."""
    cuts = [(group, range(group.units - 1)) for group in tried]
    smaller = copy.deepcopy(module)
    try:
        cut(smaller, cuts)
        with torch.no_grad():
            found = call(smaller, inputs)
    except Exception as error:  # noqa: BLE001  whatever the model's own code raises on a size it was not written for
        return f"{type(error).__name__}: {first_line(error)}"
    with torch.no_grad():
        expected = call(module, inputs)
        if found.shape != expected.shape:
            return f"its output has the shape {list(found.shape)}"
        if not all(group.exact for group in tried):
            return None  # an average over fewer units moves the output; there is nothing to compare with
        expected = call(silenced(module, cuts), inputs)
    distance = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    return None if distance <= CLOSE else "without a unit it computes something else than with that unit at zero"


def _around(module: nn.Module, name: str) -> str:
    """Class of the layer that holds the layer `name`."""
    path = name.partition("#")[0].rpartition(".")[0]
    return type(module.get_submodule(path)).__name__
