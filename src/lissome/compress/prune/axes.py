"""Axes: what a dimension of a tensor is made of, and which dimensions are one and the same.

A convolution's output channels, the weights that read them, the normalisation between: all are one axis, and a unit removed from it is removed from
every dimension that is made of it. An axis may be a product (features = heads x width of a head, flattened = channels x height x width) or a sum
(a concatenation) of others; it is taken apart only when an operation does so. Two axes that meet in an operation become one (union-find), down to
their parts. This is the dependency graph of structured pruning (Fang et al. 2023, DepGraph) with its nodes merged as it is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

DISAGREE = "its layers divide it in different ways"
Form = Literal["product", "sum"]


@dataclass(eq=False)
class Axis:
    """One dimension, or a part of one.

    size: how many indices. parts: what it was taken apart into; empty for a leaf. reason: why it cannot be pruned; None where it can.
    averaged: a normalisation, mean or maximum runs over it, so removing a unit is not the same as setting it to zero. heads: it counts attention heads.
    """

    size: int
    reason: str | None = None
    averaged: bool = False
    heads: bool = False
    parts: list[Axis] = field(default_factory=list)
    form: Form = "product"
    same: Axis | None = None

    def root(self) -> Axis:
        """The axis that stands for all that were found to be the same."""
        axis = self
        while axis.same is not None:
            axis = axis.same
        return axis

    def leaves(self) -> Iterator[Axis]:
        """The indivisible axes it is made of, outermost first."""
        root = self.root()
        if not root.parts:
            yield root
        for part in root.parts:
            yield from part.leaves()

    def keep(self, reason: str) -> Axis:
        """Never prune it; the first reason is the one that is told."""
        for leaf in self.leaves():
            leaf.reason = leaf.reason or reason
        return self

    def mark(self, *, averaged: bool = False, heads: bool = False) -> Axis:
        """Note what runs over it."""
        for leaf in self.leaves():
            leaf.averaged, leaf.heads = leaf.averaged or averaged, leaf.heads or heads
        return self


def unify(a: Axis, b: Axis) -> Axis:
    """Make `a` and `b` one axis. Where their parts cannot be matched, neither is ever pruned."""
    a, b = a.root(), b.root()
    if a is b:
        return a
    if a.size != b.size:
        return _conflict(a, b)
    if a.parts and b.parts:
        pairs = _pairs(a, b) if a.form == b.form else None
        if pairs is None:
            return _conflict(a, b)
        for one, other in pairs:
            unify(one, other)
        b.same = a
        return a
    if b.parts:
        a, b = b, a
    if b.reason:
        a.keep(b.reason)
    a.mark(averaged=b.averaged, heads=b.heads)
    b.same = a
    return a


def product(axes: Sequence[Axis]) -> Axis:
    """The axis of a dimension that runs through all combinations of `axes`, the last one fastest."""
    kept = [axis for axis in axes if axis.size != 1]
    if len(kept) == 1:
        return kept[0]
    return Axis(math.prod(axis.size for axis in kept), parts=kept) if kept else Axis(1)


def concatenation(axes: Sequence[Axis]) -> Axis:
    """The axis of a dimension that holds `axes` one after another."""
    return axes[0] if len(axes) == 1 else Axis(sum(axis.size for axis in axes), parts=list(axes), form="sum")


def factors(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """`axis` as a product of axes of these sizes. Where it cannot be divided so, it is never pruned, and the factors are new axes that are not either."""
    larger = [size for size in sizes if size != 1]
    found = iter(_divide_or_keep(axis, larger, "product") if larger else ())
    return [Axis(1) if size == 1 else next(found) for size in sizes]


def segments(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """`axis` as a concatenation of axes of these sizes; else as in `factors`."""
    return _divide_or_keep(axis, sizes, "sum")


def reshape(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    """The axes of a row-major tensor of `axes` seen as a tensor of `sizes`."""
    out: list[Axis] = []
    waiting = [axis for axis in axes if axis.size != 1]
    at = 0
    while at < len(sizes):
        if sizes[at] == 1:
            out.append(Axis(1))
            at += 1
            continue
        group, wanted = [waiting.pop(0)], [sizes[at]]
        at += 1
        while (have := math.prod(a.size for a in group)) != (want := math.prod(wanted)):
            if have < want:
                group.append(waiting.pop(0))
            else:
                wanted.append(sizes[at])
                at += 1
        out.extend(factors(product(group), wanted) if len(wanted) > 1 else [product(group)])
    return out


def labels(axis: Axis, leaf: Axis) -> np.ndarray | None:
    """Of each index of `axis`, which unit of `leaf` it belongs to (-1: none). None when an index belongs to several."""
    root = axis.root()
    if root is leaf:
        return np.arange(root.size)
    if not root.parts:
        return np.full(root.size, -1)
    found = [labels(part, leaf) for part in root.parts]
    if any(one is None for one in found):
        return None
    arrays: list[np.ndarray] = [one for one in found if one is not None]
    if root.form == "sum":
        return np.concatenate(arrays)
    if sum((array >= 0).any() for array in arrays) > 1:
        return None
    whole = arrays[0]
    for array in arrays[1:]:
        whole = np.maximum(whole[:, None], array[None, :]).reshape(-1)
    return whole


def _conflict(a: Axis, b: Axis) -> Axis:
    a.keep(DISAGREE)
    b.keep(DISAGREE)
    return a


def _divide_or_keep(axis: Axis, sizes: Sequence[int], form: Form) -> list[Axis]:
    found = _divide(axis, sizes, form)
    if found is None:
        axis.keep(DISAGREE)
        return [Axis(size, reason=DISAGREE) for size in sizes]
    return found


def _divide(axis: Axis, sizes: Sequence[int], form: Form) -> list[Axis] | None:
    """Take `axis` apart into parts of `sizes`, or None where its parts do not allow it."""
    root = axis.root()
    if len(sizes) == 1:
        return [root]
    if not root.parts:
        root.parts, root.form = [Axis(size, root.reason, root.averaged, root.heads) for size in sizes], form
        return list(root.parts)
    if root.form != form:
        return None
    waiting, found = list(root.parts), []
    for size in sizes:
        taken: list[Axis] = []
        room = size
        while room > (1 if form == "product" else 0):
            part = waiting.pop(0)
            if part.size > room:
                pieces = _split(part, room, form)
                if pieces is None:
                    return None
                part, rest = pieces
                waiting.insert(0, rest)
            if form == "product" and room % part.size:
                return None
            taken.append(part)
            room = room // part.size if form == "product" else room - part.size
        found.append(product(taken) if form == "product" else concatenation(taken))
    return found


def _split(part: Axis, first: int, form: Form) -> list[Axis] | None:
    """`part` in two, the first of size `first`."""
    if form == "product" and part.size % first:
        return None
    return _divide(part, [first, part.size // first if form == "product" else part.size - first], form)


def _pairs(a: Axis, b: Axis) -> list[tuple[Axis, Axis]] | None:
    """The parts of `a` and `b`, divided until they match; None where they cannot be."""
    ours, theirs, found = list(a.parts), list(b.parts), []
    while ours and theirs:
        one, other = ours.pop(0), theirs.pop(0)
        if one.size != other.size:
            longer, shorter, back = (one, other, ours) if one.size > other.size else (other, one, theirs)
            pieces = _split(longer, shorter.size, a.form)
            if pieces is None:
                return None
            back.insert(0, pieces[1])
            one, other = pieces[0], shorter
        found.append((one, other))
    return found
