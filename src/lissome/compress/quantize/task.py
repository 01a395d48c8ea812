"""Quantisation for a task, into a folder: what `lissome quantize` and `lissome qat` call."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lissome.compress.batches import forward, inputs_of
from lissome.compress.distill.terms import soft_logits
from lissome.compress.qat import qat
from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QatTaskConfig, QuantizeConfig
from lissome.compress.quantize.store import check_deployed, is_quantized, load_quantized, save_quantized
from lissome.core.cache import Cache, check_out, digest, writing
from lissome.core.errors import BadInput, LissomeError
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.core.quantization import Quantized
from lissome.core.task import SplitName, Task
from lissome.core.trust import check_target
from lissome.data import load_task
from lissome.engines.table import MIXED, Load, Session, load
from lissome.export.forms import Recipe, build_form, form_bytes
from lissome.machine.identity import identify, saturates
from lissome.nn.call import accepted
from lissome.nn.load import FACTORY, load_model
from lissome.train.batches import LABELS, Batches
from lissome.train.callbacks import KeepBest
from lissome.train.finetune import score_of
from lissome.train.loop import LATE, Loss, TrainResult

CALIBRATION_EXAMPLES, CALIBRATION_BATCH = 256, 8
RECORD = "quantize.json"


@dataclass(frozen=True)
class QuantizedFolder:
    """A quantised model on disk.

    folder: the model with its scales; `onnx/` in it is what runs, unless the model could not be traced for lack of examples.
    before, after: mean of the task's score on the validation split, of the float model in torch and of the quantised one in ONNX Runtime; None without
    a task. mb_before, mb_after: of the float32 and the quantised ONNX file (of the float weights where there is no file).
    precisions: layer -> precision, of all that changed; kept: the most sensitive layers, which were spared, with their divergence in nats (without a task,
    the relative error of their weights).
    parity: relative L2 distance between the simulated and the deployed outputs. notes: what else should be known.
    original, original_fingerprint: the float model that it was made from, as `load_model` takes it.
    """

    folder: str
    before: float | None
    after: float | None
    mb_before: float
    mb_after: float | None
    precisions: Mapping[str, str]
    kept: Mapping[str, float]
    parity: float | None
    notes: tuple[str, ...]
    original: str
    original_fingerprint: str


def quantize_to(
    out: Path, model: str, task: str | None, config: QuantizeConfig | None = None, cache: Cache | None = None, progress: Progress | None = None
) -> QuantizedFolder:
    """Quantise the model that `model` names, calibrated on the task that `task` names, and write it into `out`.

    Without a task int8-dynamic and weight-only work, and int8 means int8-dynamic. Raises BadInput where `out` holds something else, and what `quantize`
    raises.
    """
    check_out(out, RECORD)
    config, cache, progress = config or QuantizeConfig(), cache or Cache(), progress or Silent()
    original = load_model(model)
    loaded = load_task(task, original.directory) if task else None
    dynamic = config.open and loaded is None
    if dynamic:
        config = config.model_copy(update={"precision": "int8-dynamic"})
    made = quantize(original, _for_here(config), calibration(loaded) if loaded else None, progress=progress)
    if dynamic:
        note = "int8-dynamic was taken for int8: int8-static needs calibration examples, which --task TASK gives"
        made = dataclasses.replace(made, notes=(note, *made.notes))
    return write(out, original, made, loaded, cache, progress)


def qat_to(
    out: Path,
    model: str,
    task: str,
    config: QatTaskConfig | None = None,
    start: QuantizeConfig | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> QuantizedFolder:
    """Train the quantised model in the folder `model` on the task's train split, or quantise the model that `model` names and train that.

    A run that was killed goes on where it was. Raises BadInput where `out` holds something else, and what `quantize` and `qat` raise.
    """
    check_out(out, RECORD)
    config, cache, progress = config or QatTaskConfig(), cache or Cache(), progress or Silent()
    if is_quantized(model):
        if start is not None:
            raise BadInput(
                "the model is quantised already; training keeps its precisions and starts from its scales.",
                where=model,
                expected="no --precision and no --method",
                do="leave them out, or give the float model",
            )
        first = load_quantized(Path(model))
        original, notes = original_of(Path(model), first)
        first, loaded = dataclasses.replace(first, notes=notes), load_task(task, first.model.directory)
    else:
        original = load_model(model)
        loaded = load_task(task, original.directory)
        first = quantize(original, _for_here(start or QuantizeConfig()), calibration(loaded), progress=progress)
    trained = qat_for_task(original, first, loaded, config, cache, progress)
    return write(out, original, trained, loaded, cache, progress)


def original_of(folder: Path, quantized: Quantized) -> tuple[Model, tuple[str, ...]]:
    """The float model that the quantised `folder` was made from, as the folder's record names it; what it holds itself where that is not to be had.

    Bias correction, smoothing and absorbed norms moved the folder's own weights, so what teaches, and what a score is compared with, is not them. A
    note says so where they must do.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        ref, expected = str(record["original"]), str(record["original_fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        why = f"{RECORD} does not name it"
    else:
        if expected == quantized.model.fingerprint:
            return quantized.model, ()
        try:
            found = _recorded(ref, folder)
            if found.fingerprint == expected:
                return found, ()
            why = f"{ref} is another model now"
        except LissomeError as error:
            why = error.what
    note = f"the float model that {folder} was made from is not to be had: {why.rstrip('.')}; the folder's own weights teach and are compared with"
    return quantized.model, (note,)


def _recorded(ref: str, folder: Path) -> Model:
    """The local model that a record names; code that it names needs the user's consent, and nothing is downloaded for it."""
    if not Path(ref).is_dir():
        if not FACTORY.fullmatch(ref):
            raise BadInput(f"there is no folder {ref}")
        check_target(ref.partition("@")[0], str(folder / RECORD), BadInput)
    return load_model(ref)


def qat_for_task(
    original: Model,
    quantized: Quantized,
    task: Task,
    config: QatTaskConfig,
    cache: Cache,
    progress: Progress | None = None,
    *,
    teacher: Model | None = None,
    done: Callable[[TrainResult], None] | None = None,
    deadline: float | None = None,
) -> Quantized:
    """`quantized` trained on the task's train split, with the best weights by the task's score on validation.

    teacher: whose outputs are learned from; the original, when None. done(result): called with what the run did. deadline: as in `train`; the next call
    goes on where it cut this one short.
    """
    progress, teacher = progress or Silent(), teacher or original
    settings = config.model_dump(exclude={"train": {"checkpoint_every", "spend"}})
    checkpoints = cache.path("training", digest("qat", quantized.fingerprint, teacher.fingerprint, task.fingerprint, settings))
    best = KeepBest(lambda module: score_of(module, task), every=config.evaluate_every, patience=config.patience)
    loss = taught_loss(teacher, config.teacher)
    batches = Batches(task, "train", config.size, seed=config.train.seed)
    results: list[TrainResult] = []
    trained = qat(
        original,
        quantized,
        loss,
        batches,
        config.train,
        scale_lr=config.scale_lr,
        callbacks=[best],
        resume=checkpoints,
        progress=progress,
        done=results.append,
        deadline=deadline,
    )
    progress.say(f"validation score {best.score:.4f} at step {best.step}")
    if results[0].stopped != LATE:
        shutil.rmtree(checkpoints, ignore_errors=True)
    if done:
        done(results[0])
    return trained


def taught_loss(original: Model, share: float) -> Loss:
    """(1 - share) times the cross entropy of the labels, plus share times the divergence from the float model's outputs."""
    teacher = original.module

    def loss(module: torch.nn.Module, batch: Any) -> torch.Tensor:
        outputs = forward(module, batch).float()
        hard = functional.cross_entropy(outputs, batch[LABELS].long())
        if not share:
            return hard
        with torch.no_grad():
            expected = forward(teacher, batch)
        return (1 - share) * hard + share * soft_logits(outputs, expected)

    return loss


def calibration(task: Task, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Up to 256 examples of the calibration split with their labels, drawn at random, in batches of 8."""
    batches = Batches(task, "calibration", CALIBRATION_BATCH)
    picks = np.random.default_rng(seed).permutation(len(task.splits["calibration"]))[:CALIBRATION_EXAMPLES]
    return [batches.batch(picks[at : at + CALIBRATION_BATCH]) for at in range(0, len(picks), CALIBRATION_BATCH)]


def write(out: Path, original: Model, quantized: Quantized, task: Task | None, cache: Cache, progress: Progress) -> QuantizedFolder:
    """Write a quantised model with its ONNX form into `out`, having held the form to the simulation; score both where there is a task."""
    example = _example(quantized.model, task)
    notes = list(quantized.notes)
    float_mb = sum(tensor.nbytes for tensor in original.module.state_dict().values()) / 1e6
    before = after = mb_after = parity = None
    form: Path | None = None
    if example is None:
        notes.append("there is no example of its inputs, so no ONNX form was written; give --task TASK for one")
    else:
        progress.stage("write the ONNX form")
        variable = task.variable_length if task else "input_ids" in example
        recipe = Recipe(original, example, [], "", variable)
        form = build_form(recipe, "onnxruntime", MIXED, cache, quantized=quantized)
        parity = check_deployed(quantized, form, example)
        own = dataclasses.replace(recipe, model=quantized.model)
        float_mb, mb_after = form_bytes(build_form(own, "onnxruntime", "fp32", cache)) / 1e6, form_bytes(form) / 1e6
    if task is not None and form is not None:
        progress.stage("score before and after")
        before, after = score_of(original.module, task), deployed_score(load("onnxruntime", form, Load(MIXED, torch.get_num_threads())), task)
    kept = {name: quantized.sensitivity[name] for name in quantized.sensitivity if not _whole(quantized, name)}
    precisions = {name: quant.precision for name, quant in quantized.quantization.layers.items()}
    ref = str(original.directory.resolve()) if original.directory else original.ref
    result = QuantizedFolder(str(out), before, after, float_mb, mb_after, precisions, kept, parity, tuple(notes), ref, original.fingerprint)
    with writing("the quantised model", out):
        save_quantized(quantized, out)
        if form is not None:
            shutil.copytree(form, out / "onnx", dirs_exist_ok=True)
        (out / RECORD).write_text(json.dumps(dataclasses.asdict(result), indent=1), encoding="utf-8")
    return result


def _for_here(config: QuantizeConfig) -> QuantizeConfig:
    """The config with 7-bit weights where this machine's products of 8 bits overflow."""
    return config.model_copy(update={"reduce_range": True}) if saturates(identify().isa) else config


def _whole(quantized: Quantized, name: str) -> bool:
    return name in quantized.quantization.layers and quantized.quantization.layers[name].integer


def deployed_score(session: Session, task: Task, split: SplitName = "validation", size: int = 64) -> float:
    """Mean of the task's score of what an engine computes."""
    batches = Batches(task, split, size, shuffle=False)
    rows = batches.rows(0)
    outputs = np.concatenate([session.run({name: value.numpy() for name, value in batches.batch(row).items() if name != LABELS}) for row in rows])
    return float(np.mean(task.score(outputs, np.asarray(task.splits[split].targets)[np.concatenate(rows)])))


def _example(model: Model, task: Task | None) -> dict[str, Any] | None:
    """Two or more examples as named arrays: of the task, or what a transformers model says its inputs look like; None where nobody knows."""
    if task is not None:
        inputs = inputs_of(Batches(task, "calibration", 2).batch([0, min(1, len(task.splits["calibration"]) - 1)]))
        return {name: value.numpy() for name, value in inputs.items()}
    dummy = getattr(model.module, "dummy_inputs", None)
    if not isinstance(dummy, Mapping):
        return None
    arrays = {name: np.asarray(value) for name, value in dummy.items() if isinstance(value, torch.Tensor)}
    if "input_ids" in arrays and "attention_mask" not in arrays:
        arrays["attention_mask"] = np.ones_like(arrays["input_ids"])
    return {name: arrays[name] for name in accepted(model.module, tuple(arrays))}
