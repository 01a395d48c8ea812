"""Distillation on a task's train split, cached by content: what the planner and `lissome distill` call."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lissome.compress.distill.config import DistillTaskConfig
from lissome.compress.distill.run import distill
from lissome.compress.distill.variations import Varied
from lissome.core.cache import Cache, check_out, digest, writing
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.core.task import Task
from lissome.data import load_task
from lissome.nn.load import load_model, save_model
from lissome.train.batches import Batches, Ordered
from lissome.train.callbacks import KeepBest
from lissome.train.finetune import depths, dropout, early_key, named, score_of, trained_once, with_head
from lissome.train.loop import LATE, TrainResult

VERSION = 2
"""Part of the cache key: raise it when the same config would give other weights."""

RECORD = "distill.json"


def distil_for_task(
    student: Model,
    teacher: Model,
    task: Task,
    config: DistillTaskConfig | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
    *,
    deadline: float | None = None,
) -> Model:
    """`student` taught by `teacher` on the task's train split, with the best weights by the task's score on validation; neither is changed.

    A second call with the same models, task and config reads the result from the cache; a killed one goes on where it was.
    So does one that a deadline (as in `train`) cut short: `share_taught` says how far that student got.
    """
    config, cache, progress = config or DistillTaskConfig(), cache or Cache(), progress or Silent()
    settings = config.model_dump(exclude={"train": {"checkpoint_every"}, "terms": {"cache_mb", "cache_hidden"}})
    key = digest("distill", VERSION, student.fingerprint, teacher.fingerprint, task.fingerprint, settings)

    def make(empty: Path, checkpoints: Path) -> str | None:
        return early_key(key, _make(student, teacher, task, config, empty, progress, resume=checkpoints, cache=cache, deadline=deadline))

    return trained_once(cache, "distill", key, student, make)


def share_taught(taught: Model) -> float:
    """How much of its training a student of `distil_for_task` had: 1, or less where a deadline cut it short."""
    result = json.loads((Path(taught.ref) / RECORD).read_text(encoding="utf-8"))["result"]
    return float(result["steps"] / result["total"]) if result["stopped"] == LATE else 1.0


@dataclass(frozen=True)
class Distilled:
    """A student on disk.

    folder: what `lissome optimize` takes. teacher, before, score: means of the task's score on the validation split of the teacher, of the student
    before and after. steps, seconds: of the training, over all resumptions; precision, why: what it ran in, and the reason.
    parameters: of the student and the teacher. fingerprint: of the student.
    """

    folder: str
    teacher: float
    before: float
    score: float
    steps: int
    seconds: float
    precision: str
    why: str
    parameters: tuple[int, int]
    fingerprint: str


def distill_to(
    out: Path, student: str, teacher: str, task: str, config: DistillTaskConfig | None = None, cache: Cache | None = None, progress: Progress | None = None
) -> Distilled:
    """Teach the model that `student` names by the one that `teacher` names, on the task that `task` names, and write it into `out`.

    Raises BadInput where `out` holds something else, and what load_model, load_task and distill raise.
    """
    check_out(out, RECORD)
    config, cache, progress = config or DistillTaskConfig(), cache or Cache(), progress or Silent()
    guide = load_model(teacher)
    loaded = load_task(task, guide.directory)
    start = with_head(student, loaded, config.train.seed)
    if start.directory is None and guide.directory is not None:
        start = dataclasses.replace(start, directory=guide.directory)  # so that the tokenizer's files go with the student
    taught = distil_for_task(start, guide, loaded, config, cache, progress)
    progress.stage("score teacher and student")
    scores = [score_of(model.module, loaded) for model in (guide, start)]
    with writing("the student", out):
        shutil.copytree(taught.ref, out, dirs_exist_ok=True)
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    result = record["result"]
    sizes = (_parameters(taught), _parameters(guide))
    figures = (result["steps"], result["seconds"], result["precision"], result["why"])
    return Distilled(str(out), scores[0], scores[1], record["score"], *figures, sizes, taught.fingerprint)


def _make(student: Model, teacher: Model, task: Task, config: DistillTaskConfig, empty: Path, progress: Progress, **given: Any) -> TrainResult:
    """Distil and write the result into the folder `empty`. given: what else `distill` takes."""
    batches: Ordered = Batches(task, "train", config.size, seed=config.train.seed)
    terms = config.terms
    if config.variations:  # what is said of a text that never comes again need not be kept
        batches, terms = Varied(batches, config.variations, config.train.seed), terms.model_copy(update={"cache_mb": 0.0})
    held = dataclasses.replace(student, module=copy.deepcopy(student.module))
    depth, _ = depths(held.module)
    kept: dict[str, Any] = {}
    results: list[TrainResult] = []

    def note(result: TrainResult, best: KeepBest | None) -> None:
        assert best is not None
        results.append(result)
        kept.update(result=dataclasses.asdict(result), score=best.score, scores=best.scores, best_step=best.step)

    with dropout(held.module, config.dropout):
        taught = distill(
            held,
            teacher,
            terms,
            batches,
            config.train,
            validate=lambda module: score_of(module, task),
            evaluate_every=config.evaluate_every,
            patience=config.patience,
            progress=progress,
            frozen=(lambda name: depth[name] == 0) if config.freeze_embeddings else None,
            done=note,
            **given,
        )
    held.module.load_state_dict(taught.module.state_dict())  # the student itself, with its own dropout
    result = results[0]
    progress.say(f"distilled in {result.seconds:.0f} s, {result.precision}: {result.why}. Validation score {kept['score']:.4f}.")
    save_model(named(held, task), empty)
    (empty / RECORD).write_text(json.dumps({"config": config.model_dump(mode="json"), **kept, "task": task.fingerprint}, indent=1), encoding="utf-8")
    return result


def _parameters(model: Model) -> int:
    return sum(p.numel() for p in model.module.parameters())
