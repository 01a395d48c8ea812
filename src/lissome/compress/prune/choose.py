"""Choose which units stay."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from lissome.compress.prune.config import PruneConfig
from lissome.compress.prune.groups import Group, Groups
from lissome.core.errors import BadInput

WIDE, NARROW = 16, 8
"""Float32 numbers in a vector register: of AVX-512, and of everything smaller (AVX2; two registers of NEON)."""


def choose(groups: Groups, scores: Mapping[str, torch.Tensor], config: PruneConfig) -> dict[str, list[int]]:
    """Of every group that is cut, the units that stay: those with the highest scores.

    Raises BadInput where nothing can be cut, or not so much; a ratio of 0, or a `keep` of whole groups, asks for nothing and gets it.
    """
    if config.keep:
        kept = {name: best(groups[name], scores[name], _asked(groups[name], count)) for name, count in config.keep.items()}
    else:
        cut = [group for group in groups if group.kind != "blocks" and group.kind in config.kinds and (group.exact or config.through_norms)]
        multiple = config.round_to or preferred_multiple()
        counts = _shares(cut, config.ratio) if config.compare == "group" else _competing(cut, scores, config.ratio)
        rounded = {group.name: round_up(group, counts[group.name], multiple) for group in cut}
        kept = {group.name: best(group, scores[group.name], rounded[group.name]) for group in cut}
    kept = {name: units for name, units in kept.items() if len(units) < groups[name].units}
    if config.drop_blocks:
        kept |= _blocks_that_stay(groups, scores, config.drop_blocks)
    if not kept and not config.keep and config.ratio > 0:
        raise _nothing_cut(groups, cut, config, multiple)
    return kept


def best(group: Group, scores: torch.Tensor, count: int) -> list[int]:
    """The `count` units with the highest scores; of equal ones the first, so that the choice is the same everywhere."""
    order = sorted(range(group.units), key=lambda unit: (-float(scores[unit]), unit))
    return sorted(order[:count])


def round_up(group: Group, count: int, multiple: int) -> int:
    """`count` rounded up so that the layer's width is a multiple of `multiple`, or the group whole."""
    step = multiple // math.gcd(multiple, group.width)
    return min(group.units, max(group.least, math.ceil(count / step) * step))


def preferred_multiple() -> int:
    """What this machine's kernels like widths to be a multiple of."""
    from lissome.machine.identity import processor

    return WIDE if any("512" in name for name in processor().isa) else NARROW


def _nothing_cut(groups: Groups, cut: list[Group], config: PruneConfig, multiple: int) -> BadInput:
    """Why a config with a ratio leaves the model as it is."""
    if cut:
        widest = max(cut, key=lambda group: group.units * group.width)
        return BadInput(
            f"a ratio of {config.ratio:g} cuts nothing: rounded up to multiples of {multiple}, all widths are the whole ones again. "
            f'The widest group, "{widest.name}", has {widest.units} {widest.kind}, {widest.units * widest.width} wide.',
            do="raise the ratio, or lower round_to",
        )
    averaged = sorted({group.kind for group in groups if group.kind in config.kinds and group.kind != "blocks"})
    if averaged:
        return BadInput(
            f"a normalisation averages over all {' and '.join(averaged)} that could be cut, so no such cut is exact.",
            do="set through_norms to cut them all the same",
        )
    there = sorted({"blocks (by drop_blocks)" if group.kind == "blocks" else group.kind for group in groups})
    return BadInput(f"this model has no {' or '.join(config.kinds) or 'kinds asked for'} that can be cut.", expected=" or ".join(there))


def _asked(group: Group, count: int) -> int:
    if not group.least <= count <= group.units:
        raise BadInput(f'the group "{group.name}" cannot keep {count} units.', expected=f"{group.least} to {group.units}")
    return count


def _shares(cut: list[Group], ratio: float) -> dict[str, int]:
    """The same share of every group."""
    return {group.name: math.ceil(group.units * (1 - ratio) - 1e-9) for group in cut}


def _competing(cut: list[Group], scores: Mapping[str, torch.Tensor], ratio: float) -> dict[str, int]:
    """The units of all groups of a kind compete; scores are divided by their group's mean, as layers differ in scale."""
    counts = {group.name: group.units for group in cut}
    for kind in {group.kind for group in cut}:
        mine = [group for group in cut if group.kind == kind]
        ranked = sorted((float(score / scores[group.name].mean().clamp_min(1e-30)), group.name) for group in mine for score in scores[group.name])
        for _, name in ranked[: int(len(ranked) * ratio)]:
            counts[name] -= 1
    return {name: max(1, count) for name, count in counts.items()}


def _blocks_that_stay(groups: Groups, scores: Mapping[str, torch.Tensor], drop: int) -> dict[str, list[int]]:
    """All blocks but the `drop` least important ones, over all lists of blocks."""
    lists = [group for group in groups if group.kind == "blocks"]
    possible = sum(group.units - group.least for group in lists)
    if drop > possible:
        raise BadInput(f"{drop} blocks cannot be dropped.", expected=f"at most {possible}" if lists else "a model with residual blocks in a list")
    gone: dict[str, set[int]] = {group.name: set() for group in lists}
    ranked = sorted((float(score), group.name, unit) for group in lists for unit, score in enumerate(scores[group.name]))
    room = {group.name: group.units - group.least for group in lists}
    for _, name, unit in ranked:
        if drop and len(gone[name]) < room[name]:
            gone[name].add(unit)
            drop -= 1
    return {group.name: [unit for unit in range(group.units) if unit not in gone[group.name]] for group in lists if gone[group.name]}
