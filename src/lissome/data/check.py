"""What a task holds, before any work: sizes, classes, balance, lengths, repeated examples, and what its test split can certify."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from lissome.core.config import Config
from lissome.core.task import SPLITS, SplitName, Task
from lissome.data.duplicates import example_key, repeats, shared, show
from lissome.data.tasks.text import tokens_of

ALPHA = 0.05
FEW_TEST = 1_000
FEW_PER_CLASS = 10


class Lengths(Config):
    """Distribution of text lengths over all splits. cut: share of the texts that reach the tokenizer's maximum (and may be cut); None for words."""

    unit: Literal["tokens", "words"]
    median: float
    p95: float
    longest: int
    limit: int | None = None
    cut: float | None = None


class Overlap(Config):
    """Examples of `second` that also occur in `first`, and up to three of them."""

    first: SplitName
    second: SplitName
    count: int
    examples: tuple[str, ...]


class TaskReport(Config):
    """What check_task found.

    sizes: rows per split. balance: rows per class in each split (empty for regression). repeated: rows of a split that copy an earlier row of it.
    across: examples shared between splits. contradictory: distinct examples that occur with more than one target.
    certifiable_pt: the smallest drop in points that the test split could certify at 95 %, if the new model got nothing wrong that the old got
    right; None where the score is not 0 or 1. notes: how the splits came about. warnings: what to look at before trusting a verdict.
    """

    name: str
    kind: str
    ref: str
    fingerprint: str
    classes: tuple[str, ...]
    sizes: Mapping[SplitName, int]
    balance: Mapping[SplitName, Mapping[str, int]]
    lengths: Lengths | None
    shape: tuple[int, ...] | None
    repeated: Mapping[SplitName, int]
    across: tuple[Overlap, ...]
    contradictory: int
    certifiable_pt: float | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def check_task(task: Task) -> TaskReport:
    """Look at every example once; reads no model. Texts are measured in tokens where the task has a tokenizer, else in words."""
    keys = {name: [example_key(example) for example in task.splits[name].inputs] for name in SPLITS}
    across = tuple(
        Overlap(first=first, second=second, count=len(at), examples=tuple(show(task.splits[second].inputs[i]) for i in at[:3]))
        for (first, second), at in shared(keys).items()
    )
    sizes = task.sizes()
    certifiable = smallest_certifiable_drop(sizes["test"]) if task.exact else None
    balance, lengths = _balance(task), _lengths(task)
    contradictory = _contradictory(task, keys)
    repeated = {name: repeats(keys[name]) for name in SPLITS}
    first = task.splits["train"].inputs[0]
    warnings = [note.removeprefix("warning: ") for note in task.notes if note.startswith("warning: ")]
    warnings += _size_warnings(task, balance, certifiable) + _content_warnings(task, across, contradictory, repeated, lengths)
    return TaskReport(
        name=task.name,
        kind=task.kind,
        ref=task.ref,
        fingerprint=task.fingerprint,
        classes=task.classes,
        sizes=sizes,
        balance=balance,
        lengths=lengths,
        shape=tuple(first.shape) if isinstance(first, np.ndarray) else None,
        repeated=repeated,
        across=across,
        contradictory=contradictory,
        certifiable_pt=certifiable,
        notes=tuple(note for note in task.notes if not note.startswith("warning: ")),
        warnings=tuple(warnings),
    )


def smallest_certifiable_drop(n: int, alpha: float = ALPHA) -> float:
    """In points: the exact binomial upper bound on the drop when none of n examples got worse, 1 - alpha**(1/n) (about 3/n; Hanley and Lippman-Hand 1983)."""
    return 100.0 * (1.0 - float(alpha ** (1 / n)))


def _balance(task: Task) -> dict[SplitName, dict[str, int]]:
    if not task.classes:
        return {}
    counts = {name: Counter(np.asarray(task.splits[name].targets).tolist()) for name in SPLITS}
    return {name: {label: counts[name][i] for i, label in enumerate(task.classes)} for name in SPLITS}


def _lengths(task: Task) -> Lengths | None:
    texts = [example for name in SPLITS for example in task.splits[name].inputs]
    if not all(isinstance(text, str) or (isinstance(text, tuple) and all(isinstance(t, str) for t in text)) for text in texts):
        return None
    tokens = tokens_of(task)
    values = tokens.lengths(texts) if tokens else np.array([len((text if isinstance(text, str) else " ".join(text)).split()) for text in texts])
    p50, p95 = np.quantile(values, [0.5, 0.95])
    return Lengths(
        unit="tokens" if tokens else "words",
        median=float(p50),
        p95=float(p95),
        longest=int(values.max()),
        limit=tokens.length if tokens else None,
        cut=float((values >= tokens.length).mean()) if tokens else None,
    )


def _contradictory(task: Task, keys: Mapping[SplitName, Sequence[bytes]]) -> int:
    if not task.classes:
        return 0
    targets: dict[bytes, int] = {}
    clash = set()
    for name in SPLITS:
        for key, target in zip(keys[name], np.asarray(task.splits[name].targets).tolist(), strict=True):
            if targets.setdefault(key, target) != target:
                clash.add(key)
    return len(clash)


def _size_warnings(task: Task, balance: Mapping[SplitName, Mapping[str, int]], certifiable: float | None) -> list[str]:
    found = []
    n = len(task.splits["test"])
    if certifiable is not None and n < FEW_TEST:
        found.append(f"test has {n:,} rows: it can certify a drop of about {certifiable:.2g} pt at the very least")
    chosen: tuple[SplitName, ...] = ("validation", "test") if balance else ()
    for name in chosen:
        few = [f"{label} ({count})" for label, count in balance[name].items() if count < FEW_PER_CLASS]
        if few:
            more = f" and {len(few) - 5} more" if len(few) > 5 else ""
            found.append(f"{name} has fewer than {FEW_PER_CLASS} rows of {', '.join(few[:5])}{more}")
    if balance:
        label, most = max(balance["test"].items(), key=lambda item: item[1])
        if most > 0.9 * n:
            found.append(f'{100 * most / n:.0f} % of test is "{label}": accuracy says little about the other classes')
    return found


def _content_warnings(task: Task, across: Sequence[Overlap], contradictory: int, repeated: Mapping[SplitName, int], lengths: Lengths | None) -> list[str]:
    found = [f"{o.count:,} of {o.second}'s examples also occur in {o.first}: {', '.join(o.examples)}" for o in across]
    if contradictory:
        found.append(f"{contradictory:,} examples occur with different targets")
    if repeated["test"]:
        found.append(f"{repeated['test']:,} test rows repeat an earlier test row: they count twice in the interval")
    if lengths and lengths.cut and lengths.cut > 0.05:
        found.append(f"{100 * lengths.cut:.0f} % of the texts reach the limit of {lengths.limit} tokens and may be cut: raise `max_length`")
    empty = sum(not text.strip() for name in SPLITS for text in task.splits[name].inputs if isinstance(text, str))
    if empty:
        found.append(f"{empty:,} texts are empty")
    return found
