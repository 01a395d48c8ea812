"""A model learns to say less: distilled from its dense self while the thresholds of its activations rise."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.compress.activation.config import ActivationConfig
from lissome.compress.batches import forward
from lissome.compress.distill.config import DistillConfig
from lissome.compress.distill.run import distill
from lissome.core.cache import Cache, digest
from lissome.core.model import Model
from lissome.core.progress import Progress
from lissome.core.task import LANGUAGE, Task
from lissome.nn.ffn import ActivationPlan, Tightening, use
from lissome.nn.ffn.plan import replace_activations
from lissome.nn.load import as_model, finished, save_model
from lissome.train.batches import Batches
from lissome.train.finetune import dropout, trained_once
from lissome.train.loop import TrainResult

VERSION = 1
"""Part of the cache key: raise it when the same config would give other weights."""
ACCUMULATED = 8
"""Language models are trained on batches of one, as their outputs are large: so many of them make one step."""
RISING = 0.6
"""Share of the training during which the thresholds rise; the rest is spent at the share that was asked for."""
TEACHER_MB = 512.0


def adapted(model: Model, task: Task, config: ActivationConfig, cache: Cache, progress: Progress) -> Model:
    """`model` with the config's activation, trained for `config.share` of zeros on the task's train split; its plan holds the thresholds that it learned with.

    Validation and test stay unseen. A second call reads the result from the cache; a killed one goes on where it was.
    """
    settings = config.model_dump(include={"train", "size", "activation", "share", "penalty"})
    settings["train"].pop("checkpoint_every")
    key = digest("sparse activations", VERSION, model.fingerprint, task.fingerprint, settings)
    return trained_once(cache, "activation", key, model, lambda empty, checkpoints: _make(model, task, config, empty, checkpoints, cache, progress))


def _make(model: Model, task: Task, config: ActivationConfig, empty: Path, checkpoints: Path, cache: Cache, progress: Progress) -> None:
    """Train and write the result into the folder `empty`."""
    size = config.batch(task.kind)
    batches, training = Batches(task, "train", size, seed=config.train.seed), config.train
    if size == 1 and training.accumulation == 1:
        training = training.model_copy(update={"accumulation": ACCUMULATED})
    passes = training.steps * training.accumulation if training.steps else int((training.epochs or 1) * len(batches))
    plan = ActivationPlan(activation=config.activation)
    module: Any = use(copy.deepcopy(model.module), plan)
    replace_activations(module, lambda _, act: Tightening(act, config.share, int(RISING * passes)))
    student = finished(module, model.architecture, model.ref, model.directory)
    kept: dict[str, Any] = {}

    def note(result: TrainResult, _: Any) -> None:
        kept.update(result=dataclasses.asdict(result))

    def penalised(trained: nn.Module, batch: Any) -> torch.Tensor:
        forward(trained, batch)
        sizes = [one.penalty for one in trained.modules() if isinstance(one, Tightening) and one.penalty is not None]
        return torch.stack(sizes).mean()

    terms = DistillConfig(logits=1.0, temperature=1.0, labels=config.penalty, cache_mb=0.0 if task.kind == LANGUAGE else TEACHER_MB)
    with dropout(module, 0.0):
        loss = penalised if config.penalty else None
        taught = distill(student, model, terms, batches, training, loss=loss, resume=checkpoints, cache=cache, progress=progress, done=note)
    trained: Any = taught.module
    thresholds = tuple(float(one.threshold) for one in trained.modules() if isinstance(one, Tightening))
    use(trained, plan.model_copy(update={"thresholds": thresholds}))
    result = kept["result"]
    progress.say(f"trained in {result['seconds']:.0f} s, {result['precision']}: {result['why']}.")
    made = dataclasses.replace(as_model(trained, model.ref), directory=model.directory)
    save_model(made, empty)
    (empty / "adapted.json").write_text(json.dumps({"config": config.model_dump(mode="json"), **kept, "task": task.fingerprint}, indent=1), encoding="utf-8")
