"""Groups: the sets of units that can be removed from a model, each with every slice of every tensor that goes with a unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from lissome.compress.prune.axes import Axis, labels
from lissome.compress.prune.config import Kind
from lissome.compress.prune.flow import ALIKE, Flow
from lissome.core.errors import BadInput, closest
from lissome.nn.resize import tensors


@dataclass(frozen=True, eq=False)
class Member:
    """What goes with the units: dimension `place` (a number) of the tensor `owner`, or the attribute `place` (a name) of the layer `owner`.

    labels: of each index, the unit it belongs to, or -1 [size of the dimension].
    """

    owner: str
    place: int | str
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can be removed one by one.

    name: the first layer that makes them ("#2" behind it where it makes two kinds); of blocks, the list they are in. units: how many there are.
    parameters: how many weights go with one unit (of blocks: with the average one). width: how many indices of the layer's output are one unit.
    exact: removing a unit is the same as setting it to zero; not so where a normalisation averages over the units.
    members: what is cut. makers: the layers whose outputs hold the units, for their activations. blocks: positions of the units in the list.
    least: how many units must stay.
    """

    name: str
    kind: Kind
    units: int
    parameters: int
    exact: bool = True
    width: int = 1
    members: tuple[Member, ...] = ()
    makers: tuple[Member, ...] = ()
    blocks: tuple[int, ...] = ()
    least: int = 1


@dataclass(frozen=True)
class LeftAlone:
    """What cannot be pruned: a layer, how many units it has, and why."""

    name: str
    units: int
    reason: str


@dataclass(frozen=True, eq=False)
class Groups:
    """All that can be pruned in a model, and what cannot.

    parameters: weights of the whole model. fingerprint: of the model. example, shape: a batch and the shape of the model's output on it, by which a
    pruned model is checked.
    """

    groups: tuple[Group, ...]
    left: tuple[LeftAlone, ...]
    parameters: int
    fingerprint: str
    example: Mapping[str, torch.Tensor] = field(repr=False)
    shape: tuple[int, ...] = field(repr=False)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> Group:
        """The group of that name. Raises BadInput with the nearest one."""
        found = next((group for group in self.groups if group.name == name), None)
        if found is None:
            names = [group.name for group in self.groups]
            alone = next((f" It is left alone: {one.reason}." for one in self.left if one.name == name), "")
            raise BadInput(
                f'there is no group "{name}" to prune.{alone or closest(name, names)}', expected=", ".join(names[:6]) + (", ..." if names[6:] else "")
            )
        return found


def unit_groups(module: nn.Module, flow: Flow) -> tuple[list[Group], list[LeftAlone]]:
    """Groups of channels, heads and neurons that the followed dimensions allow, in the order the model computes them, and what is left alone."""
    choice = _Choice(flow)
    groups: list[Group] = []
    left: dict[tuple[str, str], LeftAlone] = {}
    for leaf, name in choice.named.items():
        if leaf.size < 2 or leaf.reason == ALIKE:
            continue
        members = _members(flow, leaf)
        reason = leaf.reason or choice.instead.get(leaf) or ("" if members else "a unit of it is multiplied with others of its own")
        if reason or not members:
            left[name, reason] = LeftAlone(name, leaf.size, reason)
        else:
            groups.append(_group(module, flow, leaf, _unused(name, groups), members))
    return groups, list(left.values())


class _Choice:
    """Which parts of dimensions made of several are offered: one factor of each product, so that a dimension is cut in one way only.

    Attention loses whole heads, and key heads with the query heads they serve. Of other factors (a grouped convolution's groups, and the channels in
    one) those with most units are offered, the inner ones of equals.
    named: every axis that a layer makes -> the layer's name. instead: axes that are not offered -> why.
    """

    def __init__(self, flow: Flow):
        self.named: dict[Axis, str] = {}
        self.instead: dict[Axis, str] = {}
        for one in flow.produced:
            for leaf in one.axis.leaves():
                self.named.setdefault(leaf, one.layer)
        rivals: dict[Axis, set[Axis]] = {}
        for axes in (*([one.axis] for one in flow.produced), *flow.weights.values()):
            for axis in axes:
                _collect(axis.root(), rivals)
        order = {leaf: at for at, leaf in enumerate(rivals)}
        offered: set[Axis] = set()
        for leaf in sorted(rivals, key=lambda leaf: (0, 0, order[leaf]) if leaf.heads else (1, -leaf.size, -order[leaf])):
            best = next((rival for rival in sorted(rivals[leaf], key=order.__getitem__) if rival in offered), None)
            if best is None:
                offered.add(leaf)
            else:
                self.instead[leaf] = (
                    f"it is cut by the {best.size} groups it stands in" if order[best] < order[leaf] else f"its {best.size} parts are cut instead"
                )


def _collect(axis: Axis, rivals: dict[Axis, set[Axis]]) -> None:
    """Note which leaves within `axis` stand in different factors of one product."""
    if axis.parts and axis.form == "product":
        free = [[leaf for leaf in part.leaves() if not leaf.reason and leaf.size > 1] for part in axis.parts]
        for one in free:
            for leaf in one:
                rivals.setdefault(leaf, set()).update(other for others in free if others is not one for other in others if other is not leaf)
    for part in axis.parts:
        _collect(part.root(), rivals)


def _members(flow: Flow, leaf: Axis) -> tuple[Member, ...]:
    """Every dimension and attribute that holds units of `leaf`; none where an index belongs to several units."""
    found: dict[tuple[str, int | str], Member] = {}
    places: list[tuple[str, int | str, Axis]] = [(name, dim, axis) for name, axes in flow.weights.items() for dim, axis in enumerate(axes)]
    places += [
        (bound.layer, bound.attribute, bound.axis) for bound in flow.bound if "head" not in bound.attribute or _counts_heads(bound.axis, bound.attribute)
    ]
    for owner, place, axis in places:
        if (owner, place) in found or not any(part is leaf for part in axis.leaves()):
            continue
        marks = labels(axis, leaf)
        if marks is None:
            return ()
        found[owner, place] = Member(owner, place, marks)
    return tuple(found.values())


def _counts_heads(axis: Axis, attribute: str) -> bool:
    return attribute == "all_head_size" or all(leaf.heads for leaf in axis.leaves())


def _group(module: nn.Module, flow: Flow, leaf: Axis, name: str, members: tuple[Member, ...]) -> Group:
    made = [(one, labels(one.axis, leaf)) for one in flow.produced if any(part is leaf for part in one.axis.leaves())]
    makers = tuple(Member(one.layer, one.place, marks) for one, marks in made if marks is not None)
    held = {name: tensor for name, tensor in tensors(module).items() if isinstance(tensor, nn.Parameter)}
    shares: dict[str, float] = {}
    for member in members:
        if member.owner in held:
            shares[member.owner] = shares.get(member.owner, 1.0) * (1 - float((member.labels == 0).mean()))
    removed = round(sum(held[owner].numel() * (1 - share) for owner, share in shares.items()))
    return Group(name, _kind(module, leaf, members), leaf.size, removed, not leaf.averaged, int((makers[0].labels == 0).sum()), members, makers)


def _kind(module: nn.Module, leaf: Axis, members: tuple[Member, ...]) -> Kind:
    """Heads where attention counts them; channels where images or a residual stream under normalisation hold them; else neurons."""
    if leaf.heads:
        return "heads"
    held = tensors(module)
    images = any(isinstance(member.place, int) and held[member.owner].ndim > 2 for member in members if member.owner in held)
    return "channels" if images or leaf.averaged else "neurons"


def _unused(name: str, groups: list[Group]) -> str:
    before = sum(group.name.partition("#")[0] == name for group in groups)
    return f"{name}#{before + 1}" if before else name
