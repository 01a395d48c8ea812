"""The pass: profile the heads, walk from dense to bold while the quality kept is certified, time it, judge it once on the test split, write it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lissome.compress.attention.adapt import adapted
from lissome.compress.attention.config import TAUS, SparsifyConfig
from lissome.compress.attention.fitted import fitted, key_of
from lissome.compress.attention.plan import DENSE, Layer, Plan, Rung, Table, candidates, layers_of, profile, rungs_of
from lissome.compress.attention.replace import sparse_self, transformers_model, with_plan
from lissome.compress.attention.speed import longest, times_faster
from lissome.compress.quality import boldest, check_enough, judged, lost, quality_kept, scores_of, verdict
from lissome.core import record
from lissome.core.cache import Cache, check_out, digest, record_use, writing
from lissome.core.measurement import Measurement
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.core.statistics import DropTest
from lissome.core.task import SplitName, Task
from lissome.data import load_task
from lissome.nn.attention.learned import FILE
from lissome.nn.attention.written import parse
from lissome.nn.load import load_model, save_model
from lissome.train.batches import Batches

VERSION = 1
"""Part of the cache keys: raise it when the same model, task and plan would give other tables or scores."""
RECORD = "sparsify.json"
Status = Literal["met", "not met", "dense"]


@dataclass(frozen=True)
class Step:
    """A rung that was looked at. kept: quality on the validation split, mean. trained: after training for its plan."""

    tau: float
    mass: float
    share: float
    kept: float
    certified: bool
    trained: bool = False


@dataclass(frozen=True)
class Sparsified:
    """What came of it.

    folder: what `load_model` and `lissome optimize` take. status: "met": the folder's model is sparse and keeps what was asked for; "not met": the test
    split did not confirm it; "dense": no plan was certified, or none is faster here. Where it is not "met" the folder holds the model as it was.
    plan: the folder's, None in a layer: dense. layers, tau, share: of the plan that was chosen, whether or not it was written; share is of the pairs of
    dense attention. steps: the walk. kept: quality kept on the test split, in %. scores: mean scores there, dense and sparse.
    speed: dense over sparse time of a forward pass on examples of `lengths` tokens. table: of all candidates.
    """

    folder: str
    status: Status
    sentence: str
    keep: float
    plan: Plan
    trained: bool
    tau: float
    share: float
    layers: tuple[Layer, ...]
    steps: tuple[Step, ...]
    kept: Measurement | None
    scores: tuple[float, float] | None
    speed: Measurement | None
    lengths: tuple[int, ...]
    table: Table
    fingerprint: str


def sparsify_to(
    out: Path, model: str, task: str, config: SparsifyConfig | None = None, cache: Cache | None = None, progress: Progress | None = None
) -> Sparsified:
    """Give the model that `model` names sparse attention that keeps its quality on the task that `task` names, and write it into `out`.

    Raises BadInput where `out` holds something else, and what load_model, load_task and sparsify raise.
    """
    check_out(out, RECORD)
    config = config or SparsifyConfig()
    start = load_model(model)
    loaded = load_task(task, start.directory)
    made, found = sparsify(start, loaded, config, cache, progress)
    found = dataclasses.replace(found, folder=str(out))
    with writing("the model", out):
        (out / FILE).unlink(missing_ok=True)  # the scorers of an earlier run's model
        save_model(made, out)
        record.write_record(out / RECORD, found, config, start.fingerprint, loaded.fingerprint)
    return found


def sparsify(
    model: Model, task: Task, config: SparsifyConfig | None = None, cache: Cache | None = None, progress: Progress | None = None
) -> tuple[Model, Sparsified]:
    """`model` with the boldest plan that is certified to keep `config.keep` of its quality and is faster here; else `model` as it was.

    Learned scorers that candidates name are fitted on the train split first. Heads are profiled on the calibration split, the plan is chosen on validation
    by fixed-sequence testing, and judged on test, once. With `config.adapt`
    half of the allowed error goes to the walk and half to the trained model one rung further. That rung follows from the same examples; the promise holds
    all the same where training helps: a trained model that fails at a rung then means that the untrained fails there too, so a wrong promise takes either
    one wrong step of the walk or a wrong judgement of that one model. The test split, which chooses nothing, has the last word.
    Raises BadModel for a model whose attention cannot be replaced, BadTask for a task too small to certify anything.
    """
    config = config or SparsifyConfig()
    alpha, delta = 1 - config.keep, 1 - config.confidence
    check_enough(task, alpha, {"validation": delta / 2 if config.adapt else delta, "test": delta})
    dense = transformers_model(model)
    batches, lengths = longest(task)
    cache, progress, twin = cache or Cache(), progress or Silent(), sparse_self(dense, batches[0])
    work = _Work(dense, twin, fitted(dense, twin, task, config, cache, progress), task, config, cache, progress)
    table = work.table()
    rungs = rungs_of(table, TAUS)
    at, trained, steps = work.walk(rungs, alpha, delta)
    rung = rungs[at]
    found = Sparsified(
        "", "dense", "", config.keep, (None,) * len(rung.plan), trained is not None, rung.tau, rung.share, layers_of(table, rung.tau), steps,
        None, None, None, tuple(lengths), table, dense.fingerprint,
    )  # fmt: skip
    if at == 0:
        return dense, dataclasses.replace(found, sentence=_why_dense(found, rungs, task))
    sparse = trained or with_plan(dense, work.twin, rung.plan, work.scorers)
    work.progress.stage("timing dense and sparse")
    speed = times_faster(dense.module, sparse.module, batches, config.seconds)
    found = dataclasses.replace(found, speed=speed)
    if speed.low <= 1:
        slow = f"Stays dense: the certified plan visits {100 * rung.share:.0f} % of the pairs and is not faster here: {speed} at {_told(lengths)} tokens."
        return dense, dataclasses.replace(found, sentence=slow)
    test, scores, seen = work.judge(sparse, alpha, delta)
    status: Status = "met" if test.certified else "not met"
    found = dataclasses.replace(found, status=status, kept=quality_kept(test), scores=scores, sentence=verdict(test, seen))
    if not test.certified:
        return dense, found
    return sparse, dataclasses.replace(found, plan=rung.plan, fingerprint=sparse.fingerprint)


def read_record(folder: Path) -> Sparsified:
    """What `sparsify_to` noted in a folder. Raises BadArtifact where there is no such record."""
    return record.read_record(Sparsified, folder / RECORD, "sparsify")


@dataclass
class _Work:
    """The model, its sparse self, and what both are asked; answers are kept in the cache.

    twin: shares the model's weights; its plan changes. scorers: the folder of those that candidates name.
    """

    model: Model
    twin: Any
    scorers: Path | None
    task: Task
    config: SparsifyConfig
    cache: Cache
    progress: Progress

    @property
    def size(self) -> int:
        return self.config.batch(self.task.kind)

    def table(self) -> Table:
        """The profile of all heads on the calibration split."""
        split = self.task.splits["calibration"]
        drawn = np.random.default_rng(self.config.train.seed).permutation(len(split))[: self.config.examples]
        batches = Batches(self.task, "calibration", self.size, shuffle=False)
        texts = self.config.candidates or candidates(_causal(self.twin, batches), int(batches.lengths[drawn].max()))
        texts = (*(written for written in map(str, map(parse, texts)) if written != DENSE), DENSE)  # a name alone could not stand within per_head(...)
        parts = (self.model.fingerprint, self.task.fingerprint, texts, drawn.tolist(), self.config.rows, self.config.train.seed, torch.__version__)
        key = digest("attention profile", VERSION, *parts, *key_of(self.scorers))
        stored = self.cache.get("attention", key)
        if stored is None:
            self.progress.stage("profiling the heads", len(drawn))
            given: Iterator[Any] = (batches.batch([row]) for row in drawn)  # alone, so without padding
            made = profile(self.twin, given, texts, rows=self.config.rows, seed=self.config.train.seed, progress=self.progress)
            stored = dataclasses.asdict(made)
            self.cache.put("attention", key, stored)
        return Table(**{**stored, "candidates": tuple(stored["candidates"])})

    def walk(self, rungs: list[Rung], alpha: float, delta: float) -> tuple[int, Model | None, tuple[Step, ...]]:
        """The boldest certified rung, the model that was trained for it if one was, and every step on the way."""
        self.progress.stage("walking from dense to bold", len(rungs))
        dense, delta = self.scores(self.model.module, self.model.fingerprint, "validation"), delta / 2 if self.config.adapt else delta

        def losses(rung: Rung) -> np.ndarray:
            self.progress.step(note=f"mass {rung.tau:g}")
            if rung is rungs[0]:
                return np.zeros_like(dense)
            made = with_plan(self.model, self.twin, rung.plan, self.scorers)
            return lost(dense, self.scores(made.module, made.fingerprint, "validation"), self.task.exact, self.task.ref)

        found, rows = boldest(rungs, losses, alpha, delta)
        at = found or 0
        steps = [_step(rung, row, number <= at) for number, (rung, row) in enumerate(zip(rungs, rows, strict=False))]
        if not self.config.adapt or at + 1 >= len(rungs):
            return at, None, tuple(steps)
        bolder = rungs[at + 1]
        trained = adapted(self.model, bolder.plan, self.task, self.config, self.cache, self.progress, self.scorers)
        row = lost(dense, self.scores(trained.module, trained.fingerprint, "validation"), self.task.exact, self.task.ref)
        kept = boldest([trained], lambda _: row, alpha, delta)[0] == 0
        steps.append(_step(bolder, row, kept, trained=True))
        return (at + 1, trained, tuple(steps)) if kept else (at, None, tuple(steps))

    def scores(self, module: nn.Module, fingerprint: str, split: SplitName) -> np.ndarray:
        """The score of every example of a split."""
        key = digest("attention scores", VERSION, fingerprint, self.task.fingerprint, split, self.size, torch.__version__)
        stored = self.cache.get("attention", key)
        if stored is None:
            stored = scores_of(module, self.task, split, self.size).tolist()
            self.cache.put("attention", key, stored)
        return np.asarray(stored, dtype=np.float64)

    def judge(self, sparse: Model, alpha: float, delta: float) -> tuple[DropTest, tuple[float, float], int]:
        """The test split, once: the quality lost there, the mean scores of both, and how many plans the split has judged for this model."""
        self.progress.stage("the test split, once")
        seen = record_use(self.cache, self.task.fingerprint, self.model.fingerprint, f"attention {sparse.fingerprint}")
        before = self.scores(self.model.module, self.model.fingerprint, "test")
        after = self.scores(sparse.module, sparse.fingerprint, "test")
        test = judged(before, after, self.task, alpha, delta, seen, self.config.train.seed)
        return test, (float(before.mean()), float(after.mean())), seen


def _causal(module: nn.Module, batches: Batches) -> bool:
    """Whether the model's attention hides the future."""
    table = profile(module, [batches.batch([0])], [DENSE], rows=1)
    return table.causal


def _step(rung: Rung, losses: np.ndarray, certified: bool, trained: bool = False) -> Step:
    return Step(rung.tau, rung.kept, rung.share, float(1 - losses.mean()), certified, trained)


def _why_dense(found: Sparsified, rungs: list[Rung], task: Task) -> str:
    """Why no sparser plan was taken."""
    if len(rungs) == 1:
        return f"Stays dense: no candidate visits fewer pairs than dense attention at these lengths (at most {found.table.longest:,} tokens)."
    tried, n = found.steps[-1], len(task.splits["validation"])
    what = "trained for it, the model" if tried.trained else "with it the model"
    return (
        f"Stays dense: the mildest plan visits {100 * tried.share:.0f} % of the pairs; {what} kept {100 * tried.kept:.2f} % of its quality on {n:,} "
        f"validation examples, which does not certify {100 * found.keep:.4g} %."
    )


def _told(lengths: list[int]) -> str:
    return " and ".join(f"{length:,}" for length in dict.fromkeys(lengths))
