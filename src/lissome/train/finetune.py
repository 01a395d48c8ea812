"""Fine-tune a classifier or a language model on a task: cross entropy, the best weights by the task's own score on validation, cached by content."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lissome.core.cache import Cache, check_out, digest, writing
from lissome.core.errors import BadModel, BadTask
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.core.task import LANGUAGE, SplitName, Task
from lissome.data import load_task
from lissome.nn.call import call
from lissome.nn.likelihood import IGNORED, token_log_likelihoods
from lissome.nn.load import finished, load_model, save_model
from lissome.nn.moe.balance import layers_of
from lissome.train.adaptive import AdaptivePrecision
from lissome.train.batches import LABELS, Batches
from lissome.train.callbacks import KeepBest
from lissome.train.config import FinetuneConfig
from lissome.train.experts import Balance, balanced
from lissome.train.loop import LATE, TrainResult, train

VERSION = 2
"""Part of the cache key: raise it when the same config would give other weights."""
LANGUAGE_SIZE = 4
"""Windows scored at once: their logits are of the whole vocabulary."""


def finetune(model: Model, task: Task, config: FinetuneConfig, cache: Cache | None = None, progress: Progress | None = None) -> Model:
    """`model` trained on the task's train split, in eval mode; the model given is left as it was.

    The result is kept in the cache as a folder that `load_model` and `lissome optimize` take: for Hugging Face architectures config.json,
    model.safetensors and the tokenizer's files. A second call with the same model, task and config reads it; a killed one goes on where it was.
    Raises BadModel or BadTask where head and labels do not fit, and what `train` raises.
    """
    cache, progress = cache or Cache(), progress or Silent()
    unused: dict[str, Any] = {"train": {"checkpoint_every"}} | ({} if config.adaptive else {"adaptive": True})
    kept_even = ["balanced experts"] if _has_experts(model.module) else []
    key = digest("finetune", VERSION, model.fingerprint, task.fingerprint, config.model_dump(exclude=unused), *kept_even)
    return trained_once(cache, "finetune", key, model, lambda empty, checkpoints: _make(model, task, config, empty, checkpoints, progress))


def trained_once(cache: Cache, kind: str, key: str, model: Model, make: Callable[[Path, Path], str | None]) -> Model:
    """The model that `make(empty folder, folder for checkpoints)` writes, made the first time and read afterwards; a killed `make` finds its checkpoints.

    So does the next call, where `make` returns the key of what a deadline cut short (`early_key`).
    """
    checkpoints = cache.path("training", key)
    folder = cache.folder(kind, key, lambda empty: make(empty, checkpoints))
    if folder == cache.path(kind, key):
        shutil.rmtree(checkpoints, ignore_errors=True)
    return read_trained(folder, model)


def early_key(key: str, result: TrainResult) -> str | None:
    """The cache key of what a training had when its deadline passed; None for one that took all its steps. key: of the whole training."""
    return digest(key, "steps", result.steps) if result.stopped == LATE else None


@dataclass(frozen=True)
class Finetuned:
    """A trained model on disk.

    folder: what `lissome optimize` takes. score: mean of the task's score on the validation split. steps, seconds: of the training, over all
    resumptions; precision, why: what it ran in, and the reason. fingerprint: of the model.
    """

    folder: str
    score: float
    steps: int
    seconds: float
    precision: str
    why: str
    fingerprint: str


def finetune_to(
    out: Path, model: str, task: str, config: FinetuneConfig | None = None, cache: Cache | None = None, progress: Progress | None = None
) -> Finetuned:
    """Fine-tune the model that `model` names on the task that `task` names and write it into `out`.

    Raises BadInput where `out` holds something else, and what load_model, load_task and finetune raise.
    """
    check_out(out, "finetune.json")
    config, cache, progress = config or FinetuneConfig(), cache or Cache(), progress or Silent()
    with _seeded(config.train.seed):
        start = load_model(model)
    loaded = load_task(task, start.directory)
    trained = finetune(with_head(start, loaded, config.train.seed), loaded, config, cache, progress)
    with writing("the fine-tuned model", out):
        shutil.copytree(trained.ref, out, dirs_exist_ok=True)
    record = json.loads((out / "finetune.json").read_text(encoding="utf-8"))
    result = record["result"]
    return Finetuned(str(out), record["score"], result["steps"], result["seconds"], result["precision"], result["why"], trained.fingerprint)


def with_head(model: Model | str, task: Task, seed: int = 0) -> Model:
    """The model, with a fresh classification head of the task's size where it has none that fits; the head's weights depend on `seed` only.

    A Hugging Face classifier with as many outputs as the task has classes keeps its head. Other models are returned as they are.
    """
    with _seeded(seed):
        model = load_model(model) if isinstance(model, str) else model
        if model.architecture.kind != "huggingface" or not task.classes:
            return model
        labels = model.architecture.config.get("id2label") or {}
        if "ForSequenceClassification" in model.architecture.target and len(labels) == len(task.classes):
            return model
        return load_model(model.ref, classes=len(task.classes))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Fresh weights from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def score_of(module: nn.Module, task: Task, split: SplitName = "validation", size: int = 64) -> float:
    """Mean of the task's score over a split, in float32 and eval mode."""
    batches = Batches(task, split, LANGUAGE_SIZE if task.kind == LANGUAGE else size, shuffle=False)
    device = next(module.parameters()).device
    targets = np.asarray(task.splits[split].targets)
    scores = []
    with torch.inference_mode():
        for row in batches.rows(0):  # scored as they come: the logits of a language model's whole split would fill the memory
            outputs = call(module, _inputs(batches.batch(row), device)).float().cpu().numpy()
            scores.append(task.score(outputs, targets[row]))
    return float(np.mean(np.concatenate(scores)))


def depths(module: nn.Module) -> tuple[dict[str, int], int]:
    """How deep each parameter lies, and the number of blocks: 0 before the blocks (embeddings), i + 1 in block i, blocks + 1 after them (the head).

    The blocks are the children of the ModuleList (else Sequential) that holds the most parameters. A module without one is all head.
    """
    lists: list[tuple[str, nn.ModuleList | nn.Sequential]] = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.ModuleList)]
    lists = lists or [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Sequential) and len(m) > 1]
    if not lists:
        return {name: 1 for name, _ in module.named_parameters()}, 0
    prefix, blocks = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    start, depth, passed = f"{prefix}." if prefix else "", {}, False
    for name, _ in module.named_parameters():
        inside = name.startswith(start)
        passed = passed or inside
        depth[name] = int(name[len(start) :].split(".")[0]) + 1 if inside else len(blocks) + 1 if passed else 0
    return depth, len(blocks)


def layer_groups(module: nn.Module, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Parameter groups with a learning rate per depth: lr * layer_decay^(blocks above), and lr * head_lr for what comes after the blocks."""
    depth, blocks = depths(module)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        at, decays = depth[name], parameter.ndim > 1
        share = config.head_lr if at > blocks else config.layer_decay ** (blocks - at)
        group = groups.setdefault((at, decays), {"params": [], "lr": config.train.lr * share, "weight_decay": config.train.weight_decay if decays else 0.0})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def classification_loss(label_smoothing: float = 0.0) -> Any:
    """A loss callable: mean cross entropy of the module's logits [batch, classes] and the batch's `labels` [batch]."""

    def loss(module: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits = call(module, {name: value for name, value in batch.items() if name != LABELS})
        return functional.cross_entropy(logits.float(), batch[LABELS].long(), label_smoothing=label_smoothing)

    return loss


def language_loss() -> Any:
    """A loss callable: mean cross entropy of the batch's `labels` [batch, length] (the token after each place, -100 where none), the head in chunks of rows."""

    def loss(module: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        labels = batch[LABELS].long()
        found = token_log_likelihoods(module, {name: value for name, value in batch.items() if name != LABELS}, labels)
        return -found.sum() / (labels != IGNORED).sum().clamp(min=1)

    return loss


def _has_experts(module: nn.Module) -> bool:
    return next(layers_of(module), None) is not None


def _inputs(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in batch.items() if name != LABELS}


def _make(model: Model, task: Task, config: FinetuneConfig, empty: Path, checkpoints: Path, progress: Progress) -> None:
    """Train and write the result into the folder `empty`."""
    batches = Batches(task, "train", config.size, seed=config.train.seed)
    module = copy.deepcopy(model.module)
    _check_head(module, task, batches, model.ref)
    best = KeepBest(lambda trained: score_of(trained, task), every=config.evaluate_every, patience=config.patience)
    loss = language_loss() if task.kind == LANGUAGE else classification_loss(config.label_smoothing)
    balance = [Balance()] if _has_experts(module) else []  # before `best`, which keeps the biases too
    with _frozen(module, config), dropout(module, config.dropout):
        adaptive = AdaptivePrecision(module, config.adaptive) if config.adaptive else None
        result = train(
            module,
            batches,
            balanced(loss) if balance else loss,
            config.train if adaptive is None else config.train.model_copy(update={"precision": "fp32"}),
            callbacks=[*balance, *([adaptive] if adaptive else []), best],
            resume=checkpoints,
            progress=progress,
            groups=lambda trained: layer_groups(trained, config),
        )
    progress.say(f"fine-tuned in {result.seconds:.0f} s, {result.precision}: {result.why}. Validation score {best.score:.4f} at step {best.step}.")
    if adaptive:
        progress.say(adaptive.sentence())
    save_model(named(dataclasses.replace(model, module=module), task), empty)
    record = {
        "config": config.model_dump(),
        "result": dataclasses.asdict(result),
        "score": best.score,
        "scores": best.scores,
        "best_step": best.step,
        "task": task.fingerprint,
        **({"adaptive": {"levels": adaptive.levels, "moves": adaptive.moves}} if adaptive else {}),
    }
    (empty / "finetune.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def named(model: Model, task: Task) -> Model:
    """`model` whose configuration, where it is a Hugging Face one, names the task's classes."""
    hf: Any = getattr(model.module, "config", None)
    if model.architecture.kind == "huggingface" and hf is not None and task.classes:
        hf.id2label = dict(enumerate(task.classes))
        hf.label2id = {name: i for i, name in enumerate(task.classes)}
    return model


def read_trained(folder: Path, model: Model) -> Model:
    """`model` with the weights that were trained and saved into `folder`."""
    if model.architecture.kind != "exported":
        return load_model(str(folder))
    from safetensors.torch import load_model as load_safetensors

    module = copy.deepcopy(model.module)  # came as a module in memory, so only its weights are on disk
    load_safetensors(module, str(folder / "model.safetensors"))
    return finished(module, model.architecture, model.ref, model.directory)


def _check_head(module: nn.Module, task: Task, batches: Batches, ref: str) -> None:
    """Raise where the head has fewer outputs than the labels need, or the labels are no class numbers."""
    if task.kind == LANGUAGE:
        return _check_language_head(module, task, batches, ref)
    targets = np.asarray(task.splits["train"].targets)
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer) or targets.min() < 0:
        raise BadTask("the labels are not class numbers.", where=task.ref, expected="whole numbers from 0, one per example")
    if len(np.unique(targets)) < 2:
        raise BadTask("the train split holds a single class, so there is nothing to learn.", where=task.ref, do="check the labels, or split stratified")
    module.eval()
    with torch.inference_mode():
        shape = list(call(module, _inputs(batches.batch([0]), next(module.parameters()).device)).shape)
    needed = max(len(task.classes), int(targets.max()) + 1)
    if len(shape) != 2 or shape[1] < needed:
        raise BadModel(
            f"the model's output has the shape {shape} for one example, but the task has {needed} classes.",
            where=ref,
            expected=f"[1, {needed}]",
            do=f"load it with a fresh head: load_model(ref, classes={needed})",
        )


def _check_language_head(module: nn.Module, task: Task, batches: Batches, ref: str) -> None:
    """Raise where the module gives no logits for the token after each place, or knows fewer tokens than the task has."""
    module.eval()
    batch = batches.batch([0])
    needed = 1 + max(max(int(ids.max()) for ids in task.splits["train"].inputs), int(np.asarray(task.splits["train"].targets).max()))
    known: Any = getattr(getattr(module, "config", None), "vocab_size", needed)
    with torch.inference_mode():
        shape = list(call(module, _inputs(batch, next(module.parameters()).device)).shape) if known >= needed else ["any", "length", known]
    if len(shape) != 3 or shape[1] != batch[LABELS].shape[1] or shape[2] < needed:
        raise BadModel(
            f"the model's output has the shape {shape} for one window, but the task asks for the token after each of {batch[LABELS].shape[1]} places.",
            where=ref,
            expected=f"[1, {batch[LABELS].shape[1]}, at least {needed} tokens]: a decoder with its language-modelling head, and its own tokenizer",
        )


@contextlib.contextmanager
def _frozen(module: nn.Module, config: FinetuneConfig) -> Iterator[None]:
    """Keep the embeddings and the lowest blocks as they are; afterwards everything may be trained again."""
    depth, blocks = depths(module)
    if config.freeze_layers >= blocks > 0 and config.freeze_layers:
        raise BadModel(f"freeze_layers = {config.freeze_layers} would freeze all {blocks} blocks.", expected=f"at most {blocks - 1}")
    lowest = config.freeze_layers if config.freeze_layers else 0 if config.freeze_embeddings else -1
    held = [p for name, p in module.named_parameters() if depth[name] <= lowest and p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def dropout(module: nn.Module, probability: float | None) -> Iterator[None]:
    """Set the probability of all dropout layers for a while."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Dropout)] if probability is not None else []
    before = [layer.p for layer in layers]
    for layer in layers:
        layer.p = probability or 0.0
    try:
        yield
    finally:
        for layer, p in zip(layers, before, strict=True):
            layer.p = p
