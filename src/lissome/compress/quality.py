"""What a sparse model keeps of its dense self, example by example, and the boldest setting of the knob at which that is certain enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from lissome.compress.batches import forward
from lissome.core.errors import BadTask
from lissome.core.measurement import Measurement
from lissome.core.statistics import DropTest, calibrate, certify_drop, fixed_sequence
from lissome.core.task import Risk, SplitName, Task
from lissome.machine.identity import identify
from lissome.train.batches import Batches

T = TypeVar("T")


def scores_of(module: nn.Module, task: Task, split: SplitName, size: int) -> np.ndarray:
    """The task's score of every example of a split [n], in the split's order. Nothing of the size of all outputs is kept."""
    batches = Batches(task, split, size, shuffle=False)
    targets, found = np.asarray(task.splits[split].targets), np.empty(len(task.splits[split]))
    module.eval()
    for rows in batches.rows(0):
        with torch.inference_mode():
            outputs = forward(module, batches.batch(rows)).float().cpu().numpy()
        found[rows] = task.score(outputs, targets[rows])
    return found


def lost(dense: np.ndarray, sparse: np.ndarray, exact: bool, ref: str) -> np.ndarray:
    """Quality lost by each example [n], in [0, 1]: a right answer that became wrong where scores are 0 or 1, else the share of the score that is gone.

    Raises BadTask for scores below 0, of which no share can be kept.
    """
    if exact:
        wrong: np.ndarray = ((dense == 1) & (sparse == 0)).astype(np.float64)
        return wrong
    if min(dense.min(), sparse.min()) < 0:
        raise BadTask("some scores are below 0, so there is no share of them to keep.", where=ref, expected="scores from 0 up, higher is better")
    gone: np.ndarray = 1 - np.divide(sparse, dense, out=np.ones_like(dense), where=dense > 0)
    return gone.clip(0, 1)


def boldest(rungs: Sequence[T], losses: Callable[[T], np.ndarray], alpha: float, delta: float) -> tuple[int | None, list[np.ndarray]]:
    """Index of the boldest of `rungs` whose mean loss is certified to be at most alpha, and the losses of those that were looked at.

    Fixed-sequence testing (Learn then Test, Angelopoulos et al. 2021): rungs run from safe to bold and were fixed before these losses; the first that is
    not certified ends the walk, and no bolder one is evaluated. None: not even the first.
    """
    rows: list[np.ndarray] = []
    found: int | None = None
    for rung in rungs:
        rows.append(losses(rung))
        found = calibrate(np.stack(rows), alpha, delta)
        if found != len(rows) - 1:
            break
    return found, rows


def walked(
    rungs: Sequence[T], scores: Callable[[T], np.ndarray], dense: np.ndarray, task: Task, alpha: float, delta: float, risk: Risk
) -> tuple[int | None, list[float]]:
    """`boldest` by the scores [n] of each rung, and the share of the dense quality that those keep which were looked at. `risk` says what alpha is a share of:
    right answers (and may not be lost), or the mean score (and may not fall).

    Raises BadTask for the mean score of too few examples: how much it is itself is known from these alone.
    """
    if risk == "lost":
        at, rows = boldest(rungs, lambda rung: lost(dense, scores(rung), task.exact, task.ref), alpha, delta)
        return at, [float(1 - row.mean()) for row in rows]
    if not certify_drop(dense, dense, alpha, 1 - delta, task.exact, relative=True).certified:
        raise BadTask(
            f"the validation split has {len(dense):,} examples, too few to certify that {1 - alpha:.4g} of the mean score is kept, even if nothing were lost.",
            where=task.ref,
            do="give the validation split more examples, or keep less",
        )
    tests: list[DropTest] = []

    def p_values() -> Iterator[float]:
        for rung in rungs:
            tests.append(certify_drop(dense, scores(rung), alpha, 1 - delta, task.exact, relative=True))
            yield tests[-1].p_value

    accepted = fixed_sequence(p_values(), delta)
    return (accepted - 1 if accepted else None), [1 - test.drop for test in tests]


def needed(alpha: float, delta: float) -> int:
    """Examples with which a loss that is zero on all of them is certified to be at most alpha: (1 - alpha)^n <= delta."""
    return math.ceil(math.log(delta) / math.log1p(-alpha) - 1e-9)


def check_enough(task: Task, alpha: float, deltas: dict[SplitName, float]) -> None:
    """Raise BadTask where a split could not even certify a model that loses nothing. deltas: split -> allowed chance of a wrong promise."""
    for split, delta in deltas.items():
        have, least = len(task.splits[split]), needed(alpha, delta)
        if have < least:
            raise BadTask(
                f"the {split} split has {have:,} examples, too few to certify that {1 - alpha:.4g} of the quality is kept: "
                f"{least:,} would be needed even if nothing were lost.",
                where=task.ref,
                do=f"give the {split} split at least {least:,} examples, or keep less",
            )


def judged(dense: np.ndarray, sparse: np.ndarray, task: Task, alpha: float, delta: float, seen: int, seed: int = 0, risk: Risk = "lost") -> DropTest:
    """The test that sparse scores [n] keep 1 - alpha of the dense quality on the test split, which has judged `seen` models, this one among them: each
    further one has to clear a higher bar."""
    if risk == "drop":
        return certify_drop(dense, sparse, alpha, 1 - delta / seen, task.exact, seed, relative=True)
    kept = 1 - lost(dense, sparse, task.exact, task.ref)
    return certify_drop(np.ones_like(kept), kept, alpha, 1 - delta / seen, task.exact, seed, score_range=(0.0, 1.0))


def quality_kept(test: DropTest) -> Measurement:
    """The quality that a judged model keeps, %."""
    most = math.inf if test.relative else 1.0  # a mean score may rise, right answers can at most all be kept
    value, low, high = (100 * min(most, 1 - one) for one in (test.drop, test.upper, test.low))
    return Measurement(f"{_what(test)} kept", value, low, high, "%", test.n, "measured", identify().fingerprint, 2 * test.confidence - 1)


def verdict(test: DropTest, seen: int) -> str:
    """The clause on the quality kept, as a contract says it. seen: how many models the test split has judged."""
    often = "seen once" if seen == 1 else f"seen {seen} times"
    figures = f"measured {100 * (1 - test.drop):.2f}, lower bound {100 * (1 - test.upper):.2f} %, n = {test.n:,} test examples, {often}"
    said = f"{_what(test)} kept >= {100 * (1 - test.margin):.4g} % ({100 * test.confidence:.3g} %): {figures}"
    return f"MET   {said}" if test.certified else f"NOT MET   {said}. The dense model was written."


def _what(test: DropTest) -> str:
    """What a test of `judged` is about: only a mean score is held relative to itself."""
    return "mean score" if test.relative else "quality"
