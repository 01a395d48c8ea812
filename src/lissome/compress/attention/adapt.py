"""A model learns to live with a plan: distilled from its dense self with the patterns in use."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lissome.compress.attention.config import SparsifyConfig
from lissome.compress.attention.fitted import key_of
from lissome.compress.attention.plan import Plan
from lissome.compress.attention.replace import with_plan
from lissome.compress.batches import forward
from lissome.compress.distill.config import DistillConfig
from lissome.compress.distill.run import distill
from lissome.compress.quality import lost, scores_of
from lissome.core.cache import Cache, digest
from lissome.core.model import Model
from lissome.core.progress import Progress
from lissome.core.task import Task
from lissome.nn.attention.learned import WORDS, attentions
from lissome.nn.load import save_model
from lissome.train.batches import Batches
from lissome.train.callbacks import KeepBest
from lissome.train.finetune import dropout, trained_once
from lissome.train.loop import TrainResult

VERSION = 1
"""Part of the cache key: raise it when the same config would give other weights."""

ACCUMULATED = 8
"""Language models are trained on batches of one, as their outputs are large: so many of them make one step."""
TEACHER_MB = 512.0


def adapted(model: Model, plan: Plan, task: Task, config: SparsifyConfig, cache: Cache, progress: Progress, scorers: Path | None = None) -> Model:
    """`model` with the plan in use, taught by `model` as it is on the task's train split; `model` is not changed.

    scorers: the folder of `fitted`, for plans that name learned ones. They stay as they were fitted: no gradient of the outputs reaches a choice of keys.
    The weights kept are the best on the calibration split: validation and test stay unseen. A second call reads the result from the cache; a killed one
    goes on where it was.
    """
    settings = config.model_dump(include={"train": True, "size": True}, exclude={"train": {"checkpoint_every"}})
    key = digest("sparsify", VERSION, model.fingerprint, task.fingerprint, plan, settings, *key_of(scorers))

    def make(empty: Path, checkpoints: Path) -> None:
        student = with_plan(model, copy.deepcopy(model.module), plan, scorers)
        _make(student, model, task, config, empty, checkpoints, cache, progress)

    return trained_once(cache, "sparsify", key, model, make)


def _make(student: Model, model: Model, task: Task, config: SparsifyConfig, empty: Path, checkpoints: Path, cache: Cache, progress: Progress) -> None:
    """Train and write the result into the folder `empty`."""
    size = config.batch(task.kind)
    batches = Batches(task, "train", size, seed=config.train.seed)
    fitted = tuple(f"{name}.{word}." for name, _ in attentions(student.module) for word in WORDS)
    training = config.train
    if size == 1 and training.accumulation == 1:
        training = training.model_copy(update={"accumulation": ACCUMULATED})
    dense = scores_of(model.module, task, "calibration", size)
    kept: dict[str, Any] = {}

    def note(result: TrainResult, best: KeepBest | None) -> None:
        assert best is not None
        kept.update(result=dataclasses.asdict(result), kept=best.score, kept_by_step=best.scores, best_step=best.step)

    with dropout(student.module, 0.0):
        _without_attention_dropout(student.module)
        taught = distill(
            student,
            model,
            DistillConfig(logits=1.0, temperature=1.0, cache_mb=TEACHER_MB if _is_flat(model.module, batches) else 0.0),
            batches,
            training,
            validate=lambda module: float(1 - np.mean(lost(dense, scores_of(module, task, "calibration", size), task.exact, task.ref))),
            resume=checkpoints,
            cache=cache,
            progress=progress,
            frozen=lambda name: name.startswith(fitted),
            done=note,
        )
    student.module.load_state_dict(taught.module.state_dict())  # the student itself, with its own dropout
    result = kept["result"]
    progress.say(f"adapted in {result['seconds']:.0f} s, {result['precision']}: {result['why']}. Of the calibration split, {kept['kept']:.4f} is kept.")
    save_model(student, empty)
    (empty / "adapted.json").write_text(json.dumps({"config": config.model_dump(mode="json"), **kept, "task": task.fingerprint}, indent=1), encoding="utf-8")


def _is_flat(module: nn.Module, batches: Batches) -> bool:
    """Whether an example's outputs are few (classes), so that a teacher's are worth keeping; a language model's are as many as tokens times words."""
    with torch.no_grad():
        return forward(module, batches.batch([0])).ndim <= 2


def _without_attention_dropout(module: nn.Module) -> None:
    """Dropout of attention weights that is a number and no layer; sparse attention does not offer it. It only ever matters while training."""
    for layer in module.modules():
        for name in ("attention_dropout", "attention_probs_dropout_prob", "dropout_prob"):
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
