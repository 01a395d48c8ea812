"""The pass: walk from few zeros to many while the quality kept is certified, perhaps train for more, judge once on the test split, write it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lissome.compress.activation.adapt import adapted
from lissome.compress.activation.config import SHARES, ActivationConfig
from lissome.compress.activation.profile import LayerZeros, multiplications, thresholds_for, zeros
from lissome.compress.attention.replace import sharing
from lissome.compress.quality import check_enough, judged, quality_kept, scores_of, verdict, walked
from lissome.core import record
from lissome.core.cache import Cache, check_out, digest, record_use, writing
from lissome.core.errors import BadModel
from lissome.core.measurement import Measurement
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.core.statistics import DropTest
from lissome.core.task import SplitName, Task
from lissome.data import load_task
from lissome.nn.ffn import ActivationPlan, use
from lissome.nn.ffn.plan import plan_of
from lissome.nn.load import as_model, finished, load_model, save_model
from lissome.train.batches import Batches

VERSION = 1
"""Part of the cache keys: raise it when the same model, task and plan would give other scores."""
RECORD = "activations.json"
DENSE = ActivationPlan()


@dataclass(frozen=True)
class Step:
    """A setting that was looked at. share: of zeros that its thresholds were set for; kept: quality on the validation split, mean."""

    share: float
    kept: float
    certified: bool
    trained: bool


@dataclass(frozen=True)
class Silenced:
    """What came of it.

    folder: what `load_model` takes. status: "met": the folder's model keeps what was asked for with `plan`; "not met": the test split did not confirm it;
    "dense": no plan with zeros was certified. Where it is not "met" the folder holds the model as it was. layers: the chosen plan's zeros by layer, on
    validation examples, since thresholds were set on others;
    multiplications: of its feed-forward parts, as a share of the dense model's, counted. kept: quality kept on the test split, %; scores: mean scores there,
    dense and sparse. silent: layers that say nothing at all.
    """

    folder: str
    status: Literal["met", "not met", "dense"]
    sentence: str
    keep: float
    plan: ActivationPlan
    trained: bool
    layers: tuple[LayerZeros, ...]
    multiplications: float
    steps: tuple[Step, ...]
    kept: Measurement | None
    scores: tuple[float, float] | None
    silent: tuple[int, ...]

    @property
    def zeros(self) -> float:
        """Share of zeros over all layers, %, the mean of examples."""
        return sum(one.mean for one in self.layers) / max(1, len(self.layers))


def sparsify_activations_to(
    out: Path, model: str, task: str, config: ActivationConfig | None = None, cache: Cache | None = None, progress: Progress | None = None
) -> Silenced:
    """Make the activations of the model that `model` names sparse, as far as its quality on a task is kept, and write it into `out`.

    Raises BadInput where `out` holds something else, and what load_model, load_task and sparsify_activations raise.
    """
    check_out(out, RECORD)
    config = config or ActivationConfig()
    start = load_model(model)
    loaded = load_task(task, start.directory)
    made, found = sparsify_activations(start, loaded, config, cache, progress)
    found = dataclasses.replace(found, folder=str(out))
    with writing("the model", out):
        save_model(made, out)
        record.write_record(out / RECORD, found, config, start.fingerprint, loaded.fingerprint)
    return found


def sparsify_activations(
    model: Model, task: Task, config: ActivationConfig | None = None, cache: Cache | None = None, progress: Progress | None = None
) -> tuple[Model, Silenced]:
    """`model` with the most zeros in its feed-forward parts that are certified to keep `config.keep` of its quality; else `model` as it was.

    Thresholds come from the calibration split; which of them is chosen on validation by fixed-sequence testing, and judged on test, once. With `config.adapt`
    half of the allowed error goes to the model as it is and half to the trained one.
    Raises BadModel for a model without known feed-forward parts or with a plan already, BadTask for a task too small to certify anything.
    """
    config = config or ActivationConfig()
    alpha, delta = 1 - config.keep, 1 - config.confidence
    each = delta / 2 if config.adapt else delta
    dense = _dense(model)
    use(copy.deepcopy(dense.module), ActivationPlan(on=config.on))  # says at once where that cannot be
    check_enough(task, alpha, {"validation": each, "test": delta})
    work = _Work(dense, task, config, cache or Cache(), progress or Silent())
    chosen, rows = work.walk(dense, SHARES, alpha, each, trained=False)
    steps, trained = rows, False
    if config.adapt:
        taught = adapted(dense, task, config, work.cache, work.progress)
        bolder, more = work.walk(taught, config.bolder(), alpha, each, trained=True)
        steps += more
        if bolder and (chosen is None or bolder[0] > chosen[0]):
            chosen, trained = bolder, True
    if chosen is None:
        plan = DENSE
        why = f"Stays dense: {_tried(steps)} does not certify {100 * config.keep:.4g} % on {len(task.splits['validation']):,} validation examples."
        return dense, Silenced("", "dense", why, config.keep, plan, False, (), 1.0, steps, None, None, ())
    sparse = chosen[1]
    plan = plan_of(sparse.module) or DENSE
    layers = zeros(sparse.module, work.examples("validation"), plan.thresholds, plan.on)
    silent = tuple(one.layer for one in layers if one.silent)
    if silent:
        work.progress.say(f"layer {', '.join(map(str, silent))} says nothing at all with its threshold: its feed-forward part adds nothing.")
    test, scores, seen = work.judge(sparse, alpha, delta)
    status: Literal["met", "not met"] = "met" if test.certified else "not met"
    done = multiplications(sparse.module, layers, plan.on)
    found = Silenced("", status, verdict(test, seen), config.keep, plan, trained, layers, done, steps, quality_kept(test), scores, silent)
    return (sparse if test.certified else dense), found


def read_record(folder: Path) -> Silenced:
    """What `sparsify_activations_to` noted in a folder. Raises BadArtifact where there is no such record."""
    return record.read_record(Silenced, folder / RECORD, "sparsify-activations")


@dataclass
class _Work:
    """The model, and what it and its sparse selves are asked; answers are kept in the cache."""

    model: Model
    task: Task
    config: ActivationConfig
    cache: Cache
    progress: Progress

    def examples(self, split: SplitName) -> Iterator[Any]:
        """Examples of a split, each alone and so without padding."""
        batches = Batches(self.task, split, 1, shuffle=False)
        drawn = np.random.default_rng(self.config.train.seed).permutation(len(self.task.splits[split]))[: self.config.examples]
        return (batches.batch([row]) for row in drawn)

    def walk(self, start: Model, shares: Sequence[float], alpha: float, delta: float, trained: bool) -> tuple[tuple[float, Model] | None, tuple[Step, ...]]:
        """The most zeros that are certified, as (share, model), and what was looked at. A share of 0 of an unchanged activation is no plan."""
        config = self.config
        plan = ActivationPlan(activation=config.activation, on=config.on)
        self.progress.stage("walking from few zeros to many", len(shares))
        rungs = list(zip(shares, thresholds_for(use(sharing(start.module), plan), self.examples("calibration"), shares, config.on), strict=True))
        before = self.scores(self.model, "validation", "dense")

        def made(rung: tuple[float, tuple[float, ...]]) -> Model:
            module = use(sharing(start.module), plan.model_copy(update={"thresholds": rung[1]}))
            return dataclasses.replace(as_model(module, self.model.ref), directory=self.model.directory)

        def scored(rung: tuple[float, tuple[float, ...]]) -> np.ndarray:
            self.progress.step(note=f"{100 * rung[0]:.0f} % zeros")
            if config.activation == "same" and not trained and not rung[0]:
                return before
            return self.scores(made(rung), "validation", (start.fingerprint, plan.activation, plan.on, rung[1]))

        at, kept = walked(rungs, scored, before, self.task, alpha, delta, config.risk)
        steps = tuple(Step(share, one, at is not None and number <= at, trained) for number, ((share, _), one) in enumerate(zip(rungs, kept, strict=False)))
        if at is None or (not rungs[at][0] and config.activation == "same"):
            return None, steps
        return (rungs[at][0], made(rungs[at])), steps

    def scores(self, model: Model, split: SplitName, what: Any) -> np.ndarray:
        """The score of every example of a split. what: tells apart what the fingerprint of the weights does not."""
        size = self.config.batch(self.task.kind)
        key = digest("activation scores", VERSION, self.model.fingerprint, self.task.fingerprint, split, size, what, torch.__version__)
        stored = self.cache.get("activation", key)
        if stored is None:
            stored = scores_of(model.module, self.task, split, size).tolist()
            self.cache.put("activation", key, stored)
        return np.asarray(stored, dtype=np.float64)

    def judge(self, sparse: Model, alpha: float, delta: float) -> tuple[DropTest, tuple[float, float], int]:
        """The test split, once: the quality lost there, the mean scores of both, and how many plans the split has judged for this model."""
        self.progress.stage("the test split, once")
        plan = plan_of(sparse.module) or DENSE
        seen = record_use(self.cache, self.task.fingerprint, self.model.fingerprint, f"activation {digest(sparse.fingerprint, plan.model_dump())}")
        before = self.scores(self.model, "test", "dense")
        after = self.scores(sparse, "test", (sparse.fingerprint, plan.model_dump()))
        test = judged(before, after, self.task, alpha, delta, seen, self.config.train.seed, self.config.risk)
        return test, (float(before.mean()), float(after.mean())), seen


def _dense(model: Model) -> Model:
    """The model as one whose plan can be saved. Raises BadModel where it cannot, or has a plan already."""
    if plan_of(model.module) is not None:
        raise BadModel(
            "the model has a plan for its activations already, so there is no dense self to hold it to.", where=model.ref, do="give the dense original"
        )
    if model.architecture.kind != "huggingface":
        model = dataclasses.replace(as_model(model.module, model.ref), directory=model.directory)
    if model.architecture.kind != "huggingface":
        raise BadModel(
            f"{type(model.module).__name__} is no transformers model, so a plan for its activations cannot be saved with it.",
            where=model.ref,
            expected="a model of a class that transformers has",
        )
    return finished(model.module, model.architecture, model.ref, model.directory)


def _tried(steps: Sequence[Step]) -> str:
    step = next((one for one in steps if not one.certified), steps[-1])
    return f"with {100 * step.share:.0f} % of zeros the {'trained ' if step.trained else ''}model kept {100 * step.kept:.2f} % of its quality, which"
