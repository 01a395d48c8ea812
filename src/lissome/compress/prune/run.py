"""Prune a model in one call, and the verb that does it from a folder into a folder."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.compress.prune.apply import apply
from lissome.compress.prune.choose import choose
from lissome.compress.prune.config import PruneConfig
from lissome.compress.prune.find import groups
from lissome.compress.prune.groups import Groups, LeftAlone
from lissome.compress.prune.importance import Loss, importance
from lissome.core.cache import check_out, writing
from lissome.core.errors import BadModel
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.data import load_task
from lissome.nn.load import as_model, load_model, save_model
from lissome.train.batches import LABELS, Batches
from lissome.train.finetune import classification_loss, score_of

RECORD = "prune.json"


def prune(
    model: Model | nn.Module, config: PruneConfig, example: Mapping[str, Any], *, loss: Loss | None = None, batches: Iterable[Any] | None = None
) -> Model:
    """A smaller copy of `model`, in eval mode; the model given is left as it was.

    example: a batch of named inputs, by which the model is traced and the result is checked. loss, batches: as `importance` needs them.
    `groups(model, example)` tells what can be cut and what cannot. Raises BadModel when nothing can be cut or the model cannot be traced, BadInput
    when `config` would leave everything as it is.
    """
    model = model if isinstance(model, Model) else as_model(copy.deepcopy(model))
    found = groups(model, example)
    return apply(model, found, keep_for(model, found, config, loss=loss, batches=batches))


def keep_for(model: Model, found: Groups, config: PruneConfig, *, loss: Loss | None = None, batches: Iterable[Any] | None = None) -> dict[str, list[int]]:
    """Of every group that `config` cuts, the units that stay. Raises BadModel when nothing can be cut, BadInput when `config` cuts nothing."""
    if not found.groups:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in found.left[:3])
        raise BadModel(f"nothing in this model can be pruned. {reasons}", where=model.ref)
    return choose(found, importance(model, found, config.importance, loss=loss, batches=batches), config)


@dataclass(frozen=True)
class Cut:
    """One group, before and after."""

    name: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class Pruned:
    """A pruned model on disk.

    folder: what `lissome optimize` takes. parameters, score: before and after; the score is the task's mean on the validation split, without any
    training since. groups: all that can be cut; left: what was left alone, and why.
    """

    folder: str
    parameters: tuple[int, int]
    score: tuple[float, float]
    groups: tuple[Cut, ...]
    left: tuple[LeftAlone, ...]
    fingerprint: str


def prune_to(
    out: Path, model: str, task: str, config: PruneConfig | None = None, *, batches: int = 16, size: int = 32, progress: Progress | None = None
) -> Pruned:
    """Prune the model that `model` names by what matters on the task that `task` names, and write it into `out`.

    batches: how many of the train split's batches of `size` examples the importance is measured on.
    Raises BadInput where `out` holds something else, and what load_model, load_task and prune raise.
    """
    check_out(out, RECORD)
    config, progress = config or PruneConfig(importance="taylor"), progress or Silent()
    start = load_model(model)
    if start.architecture.kind == "exported":
        raise BadModel(
            "it came as a module in memory, so a pruned one could not be built again.", where=start.ref, do="give a factory: package.module:function"
        )
    loaded = load_task(task, start.directory)
    data = Batches(loaded, "train", size)
    progress.stage("finding what can be cut")
    found = groups(start, {name: value for name, value in data.batch([0, 1]).items() if name != LABELS})
    progress.stage("measuring what matters")
    keep = keep_for(start, found, config, loss=classification_loss(), batches=list(itertools.islice(data, batches)))
    smaller = apply(start, found, keep)
    progress.stage("scoring")
    scores = (score_of(start.module, loaded), score_of(smaller.module, loaded))
    cuts = tuple(Cut(group.name, group.kind, group.units, len(keep.get(group.name, range(group.units)))) for group in found)
    result = Pruned(str(out), (found.parameters, _parameters(smaller)), scores, cuts, found.left, smaller.fingerprint)
    with writing("the pruned model", out):
        save_model(smaller, out)
        record = {"config": config.model_dump(), "keep": keep, "model": start.fingerprint, "task": loaded.fingerprint, **dataclasses.asdict(result)}
        (out / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return result


def _parameters(model: Model) -> int:
    weights: Iterable[torch.Tensor] = model.module.parameters()
    return sum(weight.numel() for weight in weights)
