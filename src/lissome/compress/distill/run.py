"""Distil: a student learns to answer as its teacher does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lissome.compress.distill.config import DistillConfig
from lissome.compress.distill.pupil import Loss, Pairs, Pupil
from lissome.compress.distill.teacher import Teacher
from lissome.core.cache import Cache, digest
from lissome.core.errors import BadConfig, BadInput
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.nn.load import as_model, finished
from lissome.train.batches import Ordered, ordered
from lissome.train.callbacks import KeepBest
from lissome.train.checkpoint import random_state, seed_everything, set_random_state
from lissome.train.config import TrainConfig
from lissome.train.loop import TrainResult, train

MAP_LR = 10.0
"""The maps between widths start from nothing and are thrown away: they learn this many times faster than the student."""


def distill(
    student: Model | nn.Module,
    teacher: Model | nn.Module,
    config: DistillConfig,
    batches: Any,
    training: TrainConfig,
    *,
    loss: Loss | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    resume: Path | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
    frozen: Callable[[str], bool] | None = None,
    done: Callable[[TrainResult, KeepBest | None], None] | None = None,
    deadline: float | None = None,
) -> Model:
    """A copy of `student` that was taught by `teacher`; neither of the two is changed.

    batches: a list, a DataLoader, or lissome's Batches; a batch is a mapping of named tensors (labels, if any, under "labels"), a tuple
    (inputs..., labels), or a tensor. Both models get the same inputs. What the teacher says of an example is kept in the cache, so that later epochs
    and later students do not run it again.
    loss(module, batch): the hard-label term, weighted by config.labels; it must run the module once. None takes cross entropy.
    validate(module): a score, higher is better, looked at every `evaluate_every` steps (None: each epoch); the best weights are returned, and
    `patience` looks without progress end the run. resume: folder for checkpoints; a killed run goes on from there with the same bits.
    frozen(name): whether the student's parameter of that name keeps its value. done(result, best): called with what the run did.
    deadline: as in `train`.
    Raises BadModel or BadConfig where the two cannot be compared, Diverged for a loss that is not finite, and what `train` raises.
    """
    if loss is not None and not config.labels:
        raise BadConfig("a loss for the hard labels was given, but its weight is 0.", where="labels", do="set labels above 0, or give no loss")
    progress = progress or Silent()
    taught, guide, data = _apart(student), _apart(teacher), ordered(batches)
    module = taught.module if isinstance(student, nn.Module) else copy.deepcopy(taught.module)
    pairs = Pairs(module, guide.module, config)
    says = Teacher(guide, pairs.teacher(), cache or Cache(), config.cache_mb, config.cache_hidden)
    pupil = Pupil(module, pairs, says, config, loss)
    wanted = {parameter: parameter.requires_grad for parameter in module.parameters()}
    before = random_state()
    try:
        seed_everything(training.seed)
        pupil.begin(_first(data, training.seed))
        says.prepare(data, training.steps * training.accumulation if training.steps else None, training.seed, progress, deadline)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and not (frozen is not None and frozen(name)))
        best = KeepBest(lambda _: validate(module), every=evaluate_every, patience=patience) if validate else None
        result = train(
            pupil,
            data,
            lambda one, batch: one(batch),
            training,
            callbacks=[best] if best else [],
            resume=resume,
            progress=progress,
            groups=lambda one: _groups(one, training),
            identity=digest("distill", taught.fingerprint, guide.fingerprint, config.model_dump()),
            deadline=deadline,
        )
    finally:
        says.close()
        set_random_state(before)
        for parameter, trained in wanted.items():
            parameter.requires_grad_(trained)
    if done:
        done(result, best)
    return finished(module, taught.architecture, taught.ref, taught.directory)


def _apart(model: Model | nn.Module) -> Model:
    """A Model; a plain module is copied first, since a Model's module is put into eval mode."""
    return model if isinstance(model, Model) else as_model(copy.deepcopy(model))


def _first(data: Ordered, seed: int) -> Any:
    """The first batch of the first epoch. Raises BadInput when there is none."""
    seed_everything(seed, 0)
    batch = next(iter(data.epoch(0)), None)
    if batch is None:
        raise BadInput("the loader gave no batches.", expected="at least one batch", do="check the data and its filters")
    return batch


def _groups(pupil: nn.Module, training: TrainConfig) -> list[dict[str, Any]]:
    """Matrices, which decay, vectors, which do not, and the maps between widths with their own learning rate."""
    assert isinstance(pupil, Pupil)
    learning = [p for p in pupil.student.parameters() if p.requires_grad]
    matrices, vectors = [p for p in learning if p.ndim > 1], [p for p in learning if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        {"params": list(pupil.maps.parameters()), "weight_decay": 0.0, "lr": MAP_LR * training.lr},
    ]
    return [group for group in groups if group["params"]]
