"""The parts of a model that can shrink, and what can be done to each: fewer heads, neurons or channels, or the whole block left out.

A part is what must be decided together: a block that can be left out with all that lies in it, or a group of units outside such blocks. Parts of one
signature (same kind and sizes, same shape of what they compute) cost the same time, so one of them is measured for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lissome.compress.prune import Group, Groups, apply, groups
from lissome.compress.prune.choose import best, preferred_multiple, round_up
from lissome.nn.call import call

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lissome.core.model import Model

SHARES = (0.75, 0.5, 0.25)
"""Shares of a group's units that are tried, besides all of them."""

Keep = dict[str, list[int]]


@dataclass(frozen=True)
class Change:
    """One thing that can be done to one group by itself. keep: how many units stay; 0 leaves the block out. signature: changes that cost the same."""

    group: str
    kind: str
    keep: int
    units: int
    signature: tuple[object, ...] = field(repr=False)
    block: int = -1

    @property
    def name(self) -> str:
        """ "384 of 1536 neurons", or "left out"."""
        return "left out" if self.block >= 0 else f"{self.keep} of {self.units} {self.kind}"


@dataclass(frozen=True)
class Part:
    """What is decided together. changes: for each of its groups the ways to shrink it; out: leaving the whole block out, where that can be."""

    name: str
    changes: tuple[tuple[Change, ...], ...]
    out: Change | None = None

    def options(self) -> list[tuple[Change, ...]]:
        """Every combination: nothing, one way per group, or the block left out."""
        found = [tuple(one for one in picks if one is not None) for picks in itertools.product(*((None, *ways) for ways in self.changes))]
        return [*found, (self.out,)] if self.out else found


@dataclass(frozen=True)
class Structure:
    """All parts of a model, with the groups that a cut refers to."""

    model: Model
    groups: Groups
    parts: tuple[Part, ...]

    def changes(self) -> list[Change]:
        """Every single change, in the model's order."""
        return [change for part in self.parts for change in (*itertools.chain(*part.changes), *((part.out,) if part.out else ()))]


def structure_of(model: Model, example: Mapping[str, torch.Tensor]) -> Structure:
    """The parts of `model` that can shrink without breaking what it computes. Raises BadModel when it cannot be traced."""
    found = groups(model, example)
    shapes = _output_shapes(model.module, found)
    multiple = preferred_multiple()
    lists = [group for group in found if group.kind == "blocks"]
    free = [group for group in found if group.kind != "blocks" and group.exact]
    parts, inside = [], set()
    for blocks in lists:
        for unit, at in enumerate(blocks.blocks):
            prefix = f"{blocks.name}.{at}."
            mine = [group for group in free if group.name.startswith(prefix)]
            inside |= {group.name for group in mine}
            signature = ("block", tuple(_signature(group, shapes) for group in mine), shapes.get(f"{blocks.name}.{at}"))
            out = Change(blocks.name, "blocks", 0, blocks.units, signature, unit)
            parts.append(Part(prefix[:-1], tuple(_ways(group, shapes, multiple) for group in mine), out))
    alone = [Part(group.name, (_ways(group, shapes, multiple),)) for group in free if group.name not in inside]
    return Structure(model, found, tuple(part for part in (*parts, *alone) if part.out or any(part.changes)))


def cut(structure: Structure, changes: Sequence[Change], scores: Mapping[str, torch.Tensor]) -> Model:
    """The model after all `changes`, each keeping the units with the highest scores."""
    return apply(structure.model, structure.groups, keep_of(structure, changes, scores))


def keep_of(structure: Structure, changes: Sequence[Change], scores: Mapping[str, torch.Tensor]) -> Keep:
    """Which units stay in each group that is cut. A list of blocks keeps as many as it must, those left out by themselves costing least first."""
    keep: Keep = {}
    gone: dict[str, set[int]] = {}
    for change in changes:
        group = structure.groups[change.group]
        if change.block >= 0:
            gone.setdefault(change.group, set()).add(change.block)
        else:
            keep[change.group] = best(group, scores[change.group], change.keep)
    for name, units in gone.items():
        group = structure.groups[name]
        keep[name] = [unit for unit in range(group.units) if unit not in units] or [max(range(group.units), key=lambda unit: float(scores[name][unit]))]
    return keep


def _ways(group: Group, shapes: Mapping[str, tuple[int, ...]], multiple: int) -> tuple[Change, ...]:
    counts = {round_up(group, max(1, round(group.units * share)), multiple) for share in SHARES}
    signature = _signature(group, shapes)
    return tuple(Change(group.name, group.kind, count, group.units, (*signature, count)) for count in sorted(counts, reverse=True) if count < group.units)


def _signature(group: Group, shapes: Mapping[str, tuple[int, ...]]) -> tuple[object, ...]:
    made = tuple(shapes.get(maker.owner, ()) for maker in group.makers)
    return group.kind, group.units, group.width, group.parameters, made


def _output_shapes(module: nn.Module, found: Groups) -> dict[str, tuple[int, ...]]:
    """Shape of what each maker of units and each block gives on the example, batch apart."""
    import torch

    names = {maker.owner for group in found for maker in group.makers}
    names |= {f"{group.name}.{at}" for group in found for at in group.blocks}
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: object) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        if isinstance(first, torch.Tensor):
            shapes[name] = tuple(first.shape[1:])

    handles = [module.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: note(name, output)) for name in names]
    try:
        with torch.no_grad():
            call(module, found.example)
    finally:
        for handle in handles:
            handle.remove()
    return shapes
