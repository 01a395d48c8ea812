"""From examples read to four checked splits: what every kind of task shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lissome.core.errors import BadTask
from lissome.core.task import LANGUAGE, SPLITS, Split, SplitName, Task
from lissome.data.duplicates import keys_of, repeats, shared, show
from lissome.data.splitting import Fractions, split_rows, units_of


@dataclass(frozen=True)
class Examples:
    """Examples before they are batched.

    inputs: one each; labels: class names as text, or float64 [n] for regression. groups, strata: one value a row or None.
    """

    inputs: Sequence[Any]
    labels: Sequence[str] | np.ndarray
    groups: Sequence[str] | None = None
    strata: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, at: np.ndarray) -> Examples:
        """The rows at the positions `at`."""

        def pick(values: Any) -> Any:
            if values is None:
                return None
            return values[at] if isinstance(values, np.ndarray) else [values[i] for i in at]

        return Examples(pick(self.inputs), pick(self.labels), pick(self.groups), pick(self.strata))


@dataclass(frozen=True)
class Divided:
    """The four splits and what there is to say about how they came about."""

    splits: dict[SplitName, Examples]
    notes: tuple[str, ...]


def divide(parts: Mapping[SplitName, Examples], fractions: Fractions, seed: int, allow_duplicates: bool, where: str) -> Divided:
    """Complete the given parts to four splits.

    parts: {"train": everything} or one entry per file. Missing splits are carved out of train, stratified, with groups and copies kept together.
    Raises BadTask when an example occurs in two of the given parts, unless allowed.
    """
    keys = {name: keys_of(part.inputs) for name, part in parts.items()}
    notes = []
    if len(parts) > 1:
        notes += _across(parts, keys, allow_duplicates, where)
    missing = [name for name in SPLITS if name not in parts]
    splits = dict(parts)
    if missing:
        whole = parts["train"]
        shares = {name: share for name, share in fractions.shares().items() if name == "train" or name in missing}
        units = units_of(len(whole), keys["train"], [g or None for g in whole.groups] if whole.groups else None)
        splits |= {name: whole.take(at) for name, at in split_rows(_strata(whole), shares, seed, units).items()}
        notes.append(_carved(whole, keys["train"], missing, len(parts) > 1))
    return Divided({name: splits[name] for name in SPLITS}, tuple(notes))


def _strata(examples: Examples) -> list[tuple[Any, ...]]:
    """What is spread evenly: the label (a tenth of the range of ranks for numbers) and the `stratify` column."""
    labels: list[Any]
    if isinstance(examples.labels, np.ndarray):
        edges = np.quantile(examples.labels, np.linspace(0.1, 0.9, 9))
        labels = np.searchsorted(edges, examples.labels).tolist()
    else:
        labels = list(examples.labels)
    return list(zip(labels, examples.strata or [""] * len(labels), strict=True))


def _across(parts: Mapping[SplitName, Examples], keys: Mapping[SplitName, list[bytes]], allowed: bool, where: str) -> list[str]:
    """Refuse, or note, examples and groups that occur in several of the given files."""
    notes = []
    for (first, second), at in shared(keys).items():
        text = f"{len(at):,} of {len(parts[second]):,} {second} examples also occur in {first}"
        if not allowed:
            examples = ", ".join(show(parts[second].inputs[i]) for i in at[:3])
            raise BadTask(
                f"{text}: {examples}",
                where=where,
                expected="splits that share no example (what a model was trained on says nothing about how well it generalises)",
                do="remove them from one of the files, or set `allow_duplicates: true` if you know that they are harmless",
            )
        notes.append(f"{text} (allowed)")
    groups = {name: set(part.groups) - {""} for name, part in parts.items() if part.groups}
    for i, one in enumerate(groups):
        crossing = {other: len(groups[one] & groups[other]) for other in list(groups)[i + 1 :]}
        notes += [f"warning: {count:,} groups occur in both {one} and {other}" for other, count in crossing.items() if count]
    return notes


def _carved(whole: Examples, keys: Sequence[bytes], missing: Sequence[str], given: bool) -> str:
    what = f"{', '.join(missing)} carved out of train" if given else "splits made here"
    text = f"{what}, stratified by label"
    if whole.groups:
        text += f", {len(set(whole.groups) - {''}):,} groups kept whole"
    copies = repeats(keys)
    return text + (f"; {copies:,} repeated examples kept in one split with their first copy" if copies else "")


def check_splits(task: Task, where: str) -> Task:
    """Return `task` if its splits can be used: all four there, aligned, not empty, finite, more than one class, no class that train lacks."""
    if lacking := [name for name in SPLITS if name not in task.splits]:
        raise BadTask(f"the split {lacking[0]} is missing", where=where, expected=", ".join(SPLITS))
    for name in SPLITS:
        split = task.splits[name]
        if not len(split):
            raise BadTask(f"the {name} split is empty", where=where, expected="at least one example in each split", do=_more(task))
        shape = np.shape(split.targets)
        if (shape[:1] if task.kind == LANGUAGE else shape) != (len(split),):
            raise BadTask(f"the {name} split has {len(split)} inputs and targets of shape {shape}", where=where, expected="one target per input")
        if not np.issubdtype(np.asarray(split.targets).dtype, np.number):
            raise BadTask(f"the {name} split has targets that are not numbers", where=where, expected="class numbers from 0, or floats")
        if not np.isfinite(split.targets).all():
            raise BadTask(f"the {name} split has targets that are not finite numbers", where=where)
    if task.kind != LANGUAGE and np.issubdtype(np.asarray(task.splits["test"].targets).dtype, np.integer):
        _check_classes(task, where)
    return task


def _check_classes(task: Task, where: str) -> None:
    """Every split but calibration (which only scales numbers) has two classes, and train has all classes of the others."""
    every = np.concatenate([task.splits[name].targets for name in SPLITS])
    if every.min() < 0:
        raise BadTask(f"there are class numbers below 0 ({every.min()})", where=where, expected="class numbers from 0")
    if task.classes and every.max() >= len(task.classes):
        raise BadTask(f"there are class numbers up to {every.max()}, there are {len(task.classes)} classes", where=where, expected="numbers of `classes`")

    def named(label: int) -> str:
        return f'"{task.classes[label]}"' if 0 <= label < len(task.classes) else str(label)

    present = {name: set(np.asarray(task.splits[name].targets).tolist()) for name in SPLITS}
    for name in SPLITS:
        if len(present[name]) < 2 and name != "calibration":
            raise BadTask(
                f"all {len(task.splits[name])} examples of the {name} split have the class {named(next(iter(present[name])))}",
                where=where,
                expected="at least two classes in train, validation and test",
                do=_more(task),
            )
    for name in SPLITS[1:]:
        if extra := sorted(present[name] - present["train"]):
            raise BadTask(
                f"the {name} split has classes that train lacks: {', '.join(map(named, extra[:5]))}",
                where=where,
                expected="every class in train",
                do="add examples of these classes to train, or drop them from the data",
            )


def _more(task: Task) -> str:
    total = sum(task.sizes().values())
    return f"give more examples (there are {total:,} in all), or other `fractions:` or `splits:`"


def with_targets(splits: Mapping[SplitName, Examples], targets: Mapping[SplitName, np.ndarray]) -> dict[SplitName, Split]:
    """Examples and their encoded targets as the Splits of a Task."""
    return {name: Split(part.inputs, targets[name]) for name, part in splits.items()}
