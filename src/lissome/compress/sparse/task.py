"""Sparse training on a task's train split, cached by content: what `lissome sparse-train` calls."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lissome.compress.sparse.config import SparseTaskConfig
from lissome.compress.sparse.engines import Word, speaks
from lissome.compress.sparse.run import LayerSparsity, sparse_train, sparsity_of
from lissome.core.cache import Cache, check_out, digest, writing
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.core.task import Task
from lissome.data import load_task
from lissome.machine.identity import identify
from lissome.nn.load import load_model, save_model
from lissome.train.batches import Batches
from lissome.train.callbacks import KeepBest
from lissome.train.finetune import classification_loss, named, score_of, trained_once, with_head
from lissome.train.loop import TrainResult

VERSION = 2
"""Part of the cache key: raise it when the same config would give other weights."""

RECORD = "sparse.json"


def sparsify_for_task(model: Model, task: Task, config: SparseTaskConfig | None = None, cache: Cache | None = None, progress: Progress | None = None) -> Model:
    """`model` trained towards zeros on the task's train split, the best weights by validation once the zeros are fixed; `model` is not changed.

    A second call with the same model, task and config reads the result from the cache; a killed one goes on where it was.
    """
    config, cache, progress = config or SparseTaskConfig(), cache or Cache(), progress or Silent()
    key = digest("sparse", VERSION, model.fingerprint, task.fingerprint, config.model_dump(exclude={"train": {"checkpoint_every"}}))
    return trained_once(cache, "sparse", key, model, lambda empty, checkpoints: _make(model, task, config, empty, checkpoints, progress))


@dataclass(frozen=True)
class Sparsified:
    """A sparse model on disk.

    folder: what `lissome optimize` takes. before, score: means of the task's score on the validation split. layers: zeros of each. share: of zeros
    among all weights of the layers that took the pattern. engines: what each makes of the zeros here. steps, seconds, precision, why: of the training.
    """

    folder: str
    before: float
    score: float
    share: float
    layers: list[LayerSparsity]
    engines: list[Word]
    steps: int
    seconds: float
    precision: str
    why: str
    fingerprint: str


def sparsify_to(
    out: Path, model: str, task: str, config: SparseTaskConfig | None = None, cache: Cache | None = None, progress: Progress | None = None
) -> Sparsified:
    """Train the model that `model` names towards zeros on the task that `task` names, and write it into `out`.

    Raises BadInput where `out` holds something else, and what load_model, load_task and sparse_train raise.
    """
    check_out(out, RECORD)
    config, cache, progress = config or SparseTaskConfig(), cache or Cache(), progress or Silent()
    start = load_model(model)
    loaded = load_task(task, start.directory)
    start = with_head(start, loaded, config.train.seed)
    trained = sparsify_for_task(start, loaded, config, cache, progress)
    progress.stage("score the model as it was")
    before = score_of(start.module, loaded)
    with writing("the sparse model", out):
        shutil.copytree(trained.ref, out, dirs_exist_ok=True)
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    layers = sparsity_of(trained, config.sparse)
    taken = [layer for layer in layers if not layer.left]
    share = sum(layer.zeros for layer in taken) / sum(layer.weights for layer in taken)
    words = speaks(config.sparse.pattern, isa=identify().isa)
    result = record["result"]
    figures = (result["steps"], result["seconds"], result["precision"], result["why"])
    return Sparsified(str(out), before, record["score"], share, layers, words, *figures, trained.fingerprint)


def _make(model: Model, task: Task, config: SparseTaskConfig, empty: Path, checkpoints: Path, progress: Progress) -> None:
    """Train and write the result into the folder `empty`."""
    kept: dict[str, Any] = {}

    def note(result: TrainResult, best: KeepBest | None) -> None:
        assert best is not None
        kept.update(result=dataclasses.asdict(result), score=best.score, best_step=best.step)

    batches = Batches(task, "train", config.size, seed=config.train.seed)
    trained = sparse_train(
        model,
        classification_loss(),
        batches,
        config.sparse,
        config.train,
        validate=lambda module: score_of(module, task),
        resume=checkpoints,
        progress=progress,
        done=note,
    )
    progress.say(f"trained in {kept['result']['seconds']:.0f} s, {kept['result']['precision']}. Validation score {kept['score']:.4f}.")
    save_model(named(trained, task), empty)
    (empty / RECORD).write_text(json.dumps({"config": config.model_dump(mode="json"), **kept, "task": task.fingerprint}, indent=1), encoding="utf-8")
