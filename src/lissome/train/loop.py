"""The training loop: any module, any batches, any loss.

Devices, and data-parallel training under `accelerate launch`, come from Hugging Face accelerate; optimizers from torch; learning-rate schedules from
transformers. Ours are the seeds, the checkpoints with bit-equal resume, the callbacks, and what happens when a run goes wrong.

The order of the data and every random draw of an epoch are a pure function of (seed, epoch); a checkpoint in the middle of an epoch notes how many
batches were read and the generators' state. So a run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.core.cache import digest
from lissome.core.errors import BadConfig, BadInput, BadModel, Diverged, Interrupted, MissingExtra, OutOfTime
from lissome.core.progress import Progress, Silent
from lissome.train.batches import Ordered, elements, ordered, weight
from lissome.train.callbacks import Callback, History, Run
from lissome.train.checkpoint import latest, random_state, save, seed_everything, set_random_state
from lissome.train.config import TrainConfig
from lissome.train.precision import autocast, choose_precision

Loss = Callable[[nn.Module, Any], torch.Tensor]
Groups = Callable[[nn.Module], list[dict[str, Any]]]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adafactor": torch.optim.Adafactor,
}
FUSED = ("adamw", "adam", "sgd")
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
SPENT, LATE, INTERRUPTED = "spend reached", "the deadline passed", "interrupted"


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    steps: updates of the weights, of `total`; seconds: time taken, over all resumptions. stopped: why it ended before its last step, or "".
    resumed_from: step of the checkpoint it went on from, or None. precision, why: what was trained in and the reason.
    history: rows of step, epoch, loss, grad_norm, lr. metrics: what callbacks left, such as the last validation score.
    """

    steps: int
    seconds: float
    stopped: str
    resumed_from: int | None
    precision: str
    why: str
    history: list[dict[str, float]]
    metrics: dict[str, float]
    total: int


@dataclass
class _Parts:
    """What a run is made of, so that the functions below pass one thing."""

    module: nn.Module
    prepared: nn.Module
    loss: Loss
    accelerator: Any
    optimizer: Any
    scheduler: Any
    trained: list[nn.Parameter]
    callbacks: list[Callback]
    folder: Path | None
    identity: str
    progress: Progress
    deadline: float | None = None


def train(
    module: nn.Module,
    batches: Any,
    loss: Loss,
    config: TrainConfig,
    *,
    callbacks: Sequence[Callback] = (),
    resume: Path | None = None,
    progress: Progress | None = None,
    groups: Groups | None = None,
    identity: str = "",
    deadline: float | None = None,
) -> TrainResult:
    """Train `module` in place by the mean `loss(module, batch)` of every batch; it is left in eval mode, on the device where it was.

    batches: a list, a DataLoader, or anything `Ordered`. resume: folder for checkpoints; a run that was stopped goes on from its newest one.
    identity: what else makes the run this one and not another, such as a digest of the teacher or of the quantisation. With the config, the module's
    tensors by name and shape, and the number of steps, it must be the checkpoint's own: weights, data and losses cannot be told apart from here.
    groups(module): parameter groups for the optimizer, for learning rates of their own. The global random generators are left as they were.
    deadline: on the monotonic clock; the run ends after the step in which it passes, with stopped = LATE. It is no part of what makes the run this one, so
    the same call with a later one goes on. Raises OutOfTime when it passed before the first step.
    Raises Diverged on a NaN or infinite loss or gradient, Interrupted after Ctrl-C (the checkpoint is written first), BadInput for batches,
    losses or modules that cannot be trained, BadConfig for another run's checkpoint, MissingExtra without accelerate. Under `accelerate launch`
    every process reads all batches and takes its share; sharded weights (FSDP, DeepSpeed) are not supported.
    """
    before, home = random_state(), next((p.device for p in module.parameters()), torch.device("cpu"))
    begun = time.perf_counter()
    try:
        seed_everything(config.seed)
        data = ordered(batches)
        accelerator = _accelerator()
        run = Run(module, config, _steps(data, config, accelerator.num_processes))
        history = History()
        parts = _prepare(run, accelerator, loss, [history, *callbacks], resume, progress or Silent(), groups, identity)
        parts.deadline = deadline
        generators = _restore(run, parts)
        resumed_from = run.step if generators else None
        _check_deadline(run, parts)
        if run.stopped and not run.step:
            raise OutOfTime("the time was up before the first step of a training.", do="allow more time")
        if not generators:
            run.precision, run.why = _precision(run, parts, data)
        _loop(run, parts, data, generators, begun)
        for callback in parts.callbacks:
            callback.on_end(run)
        return TrainResult(run.step, run.seconds, run.stopped, resumed_from, run.precision, run.why, history.rows, run.metrics, run.total)
    finally:
        module.zero_grad(set_to_none=True)
        module.to(home).eval()
        set_random_state(before)


def decayed(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """All trainable parameters in two groups: matrices, which decay, and vectors (biases, normalisation), which do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    return [group for group in ({"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}) if group["params"]]


def _accelerator() -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingExtra("accelerate", "train", "training") from error
    return Accelerator()


def _steps(data: Ordered, config: TrainConfig, processes: int) -> int:
    """Updates that the run will take."""
    if config.steps:
        return config.steps
    if not len(data):
        raise BadConfig(
            "the loader is empty, or does not know its length, so the epochs cannot be counted.",
            expected="a loader with at least one batch",
            do="check the data; for an endless stream set `steps` instead of `epochs`",
        )
    return max(1, math.ceil((config.epochs or 1.0) * math.ceil(len(data) / (config.accumulation * processes)) - 1e-9))


def _prepare(
    run: Run, accelerator: Any, loss: Loss, callbacks: list[Callback], folder: Path | None, progress: Progress, groups: Groups | None, identity: str
) -> _Parts:
    """Module on its device, optimizer and schedule."""
    from transformers.optimization import get_scheduler

    config, module = run.config, run.module
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise BadModel("the model has no parameter to train: all are frozen, or it has none.", do="set requires_grad on what should learn")
    prepared = accelerator.prepare_model(module)
    given = groups(module) if groups else decayed(module, config.weight_decay)
    fused = config.optimizer in FUSED and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in trained)
    options = {"lr": config.lr, "weight_decay": config.weight_decay, **({"fused": True} if fused else {}), **config.optimizer_options}
    try:
        made = OPTIMIZERS[config.optimizer](given, **options)
    except (TypeError, ValueError) as error:
        raise BadConfig(f"torch's {config.optimizer} refuses its options: {error}", do="correct `optimizer_options`") from error
    optimizer = accelerator.prepare_optimizer(made)
    scheduler = get_scheduler(SCHEDULES[config.schedule], made, round(config.warmup * run.total), run.total)
    shapes = [(name, list(tensor.shape)) for name, tensor in module.state_dict().items()]
    whole = digest(config.model_dump(exclude={"spend", "checkpoint_every"}), shapes, run.total, identity)
    return _Parts(module, prepared, loss, accelerator, optimizer, scheduler, trained, callbacks, folder, whole, progress)


def _precision(run: Run, parts: _Parts, data: Ordered) -> tuple[str, str]:
    if run.config.precision != "auto":
        return run.config.precision, "as configured"
    parts.progress.stage("choose the precision")
    device = parts.accelerator.device
    sample = sorted(itertools.islice(data.epoch(0), 3), key=elements)
    if not sample:
        return "fp32", "there was nothing to time"
    return choose_precision(parts.module, _to_device(sample[len(sample) // 2], device), parts.loss, device)


def _loop(run: Run, parts: _Parts, data: Ordered, generators: Any, begun: float) -> None:
    """All epochs that are left, with checkpoints."""
    earlier = run.seconds
    written = (time.perf_counter(), run.step)
    for callback in parts.callbacks:
        callback.on_start(run)
    parts.progress.stage("train", run.total)
    parts.progress.step(run.step)
    with _interrupts(run):
        while run.step < run.total and not run.stopped:
            seed_everything(run.config.seed, run.epoch)
            stream = data.epoch(run.epoch, run.position)
            if run.position:  # only right after a resume
                set_random_state(generators)
            for _ in _epoch(run, parts, stream, len(data)):
                run.seconds = _agreed(parts.accelerator, earlier + time.perf_counter() - begun)
                if run.config.spend and run.seconds >= run.config.spend and run.step < run.total:
                    run.stop(SPENT)
                _check_deadline(run, parts)
                parts.progress.step(1, f"loss {run.loss:.3f}")
                if parts.folder and run.config.due(time.perf_counter() - written[0], run.step - written[1]):
                    _save(run, parts)
                    written = (time.perf_counter(), run.step)
    if parts.folder and run.step != written[1]:
        _save(run, parts)
    if run.stopped == INTERRUPTED:
        kept = f"it is kept in {parts.folder}; run the same command to go on" if parts.folder else "nothing is kept, as no folder for checkpoints was given"
        raise Interrupted(f"training was interrupted after step {run.step} of {run.total}.", do=kept)


def _check_deadline(run: Run, parts: _Parts) -> None:
    """Stop the run where its deadline has passed, by what all processes have left on average."""
    if parts.deadline is not None and run.step < run.total and _agreed(parts.accelerator, parts.deadline - time.monotonic()) <= 0:
        run.stop(LATE)


def _epoch(run: Run, parts: _Parts, stream: Iterator[Any], length: int) -> Iterator[None]:
    """The rest of one epoch; yields after every step, when the run's state is whole and may be saved."""
    accelerator, first, whole = parts.accelerator, run.position == 0, False
    size = run.config.accumulation * accelerator.num_processes
    parts.module.train()
    while group := list(itertools.islice(stream, size)):
        if len(group) < accelerator.num_processes:
            break  # too few for every process to take one
        _step(run, parts, group)
        run.position += len(group)
        first, whole = False, 0 < length <= run.position
        for callback in parts.callbacks:
            callback.on_step(run)
        if whole:
            break
        yield
        if run.stopped or run.step >= run.total:
            return
    if first:
        raise BadInput(
            f"the loader gave no batches in epoch {run.epoch}.", expected="at least one batch for every process", do="check the data and its filters"
        )
    for callback in parts.callbacks:
        callback.on_epoch(run)
    run.epoch, run.position = run.epoch + 1, 0
    if whole:
        yield  # the last step, which otherwise was yielded above


def _step(run: Run, parts: _Parts, group: list[Any]) -> None:
    """One update of the weights by the mean loss over `group`. Raises Diverged before a bad gradient reaches the weights."""
    accelerator = parts.accelerator
    run.lr = max(parts.scheduler.get_last_lr())
    sizes = [weight(batch) for batch in group]
    total, world = sum(sizes) or 1, accelerator.num_processes
    mine = list(zip(group, sizes, strict=True))[accelerator.process_index :: world]
    summed = 0.0
    for i, (batch, size) in enumerate(mine):
        last = i == len(mine) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(parts.prepared):
            with autocast(accelerator.device, run.precision):
                value = parts.loss(parts.prepared, _to_device(batch, accelerator.device))
            _check_loss(value)
            value = value * (size * world / total)  # data-parallel gradients are averaged over processes
            accelerator.backward(value)
        summed += value.item()
    run.loss = _agreed(accelerator, summed)
    norm = accelerator.clip_grad_norm_(parts.trained, run.config.grad_clip or math.inf)
    run.grad_norm = float(norm)
    if not (math.isfinite(run.loss) and math.isfinite(run.grad_norm)):
        raise _diverged(run, parts)
    parts.optimizer.step()
    parts.scheduler.step()
    parts.optimizer.zero_grad()
    run.step += 1


def _check_loss(value: Any) -> None:
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        found = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise BadInput(f"the loss callable returned {found}.", expected="one number as a tensor", do="take the mean over the batch")
    if not value.requires_grad:
        raise BadInput("the loss does not depend on any parameter that is being trained.", do="compute it from the module's output, without no_grad or detach")


def _diverged(run: Run, parts: _Parts) -> Diverged:
    """The error for a loss or gradient that is not finite; the module gets the weights of the last good checkpoint."""
    found = latest(parts.folder) if parts.folder else None
    if found:
        parts.module.load_state_dict(found[1]["module"])
    what = f"the loss became {run.loss}" if not math.isfinite(run.loss) else f"the gradient's norm became {run.grad_norm}"
    kept = f"The weights of {found[0]} were put back." if found else "The module holds the weights before that step."
    return Diverged(
        f"{what} at step {run.step + 1} of {run.total}, at a learning rate of {run.lr:.3g}. {kept}",
        do=f"lower lr (try {run.config.lr / 3:.1g}), lengthen warmup, or set grad_clip; at the first steps, look for NaN in the data",
    )


def _to_device(batch: Any, device: torch.device) -> Any:
    from accelerate.utils import send_to_device

    return send_to_device(batch, device)


def _agreed(accelerator: Any, value: float) -> float:
    """The mean of `value` over all processes, so that all decide alike."""
    if accelerator.num_processes == 1:
        return value
    return float(accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=accelerator.device), "mean"))


def _save(run: Run, parts: _Parts) -> None:
    """Write a checkpoint from which the run goes on with the same bits."""
    if not parts.accelerator.is_main_process:
        return
    assert parts.folder is not None
    keep = run.stopped if run.stopped not in (SPENT, LATE, INTERRUPTED) else ""
    save(
        parts.folder,
        run.step,
        {
            "identity": parts.identity,
            "run": {name: getattr(run, name) for name in _KEPT} | {"stopped": keep},
            "module": dict(parts.module.state_dict()),
            "optimizer": parts.optimizer.state_dict(),
            "scheduler": parts.scheduler.state_dict(),
            "generators": random_state(),
            "callbacks": [callback.state() for callback in parts.callbacks],
        },
    )


_KEPT = ("step", "epoch", "position", "loss", "grad_norm", "seconds", "precision", "why", "metrics")


def _restore(run: Run, parts: _Parts) -> Any:
    """Go back to the newest checkpoint; the generators' state in it, or None where there is none. Raises BadConfig when it is another run's."""
    found = latest(parts.folder) if parts.folder else None
    if not found:
        return None
    path, tree = found
    if tree["identity"] != parts.identity or len(tree["callbacks"]) != len(parts.callbacks):
        raise BadConfig(
            "the checkpoint belongs to another run: another configuration or another model, or one that was trained against something else.",
            where=str(path),
            do="resume with what the run was begun with, or choose an empty folder",
        )
    parts.module.load_state_dict(tree["module"])
    parts.optimizer.load_state_dict(tree["optimizer"])
    parts.scheduler.load_state_dict(tree["scheduler"])
    for name, value in tree["run"].items():
        setattr(run, name, value)
    for callback, state in zip(parts.callbacks, tree["callbacks"], strict=True):
        callback.restore(state)
    return tree["generators"]


@contextlib.contextmanager
def _interrupts(run: Run) -> Iterator[None]:
    """Let the first Ctrl-C end the run after its present step, when the weights are whole; the second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def handle(*_: Any) -> None:
        run.stop(INTERRUPTED)
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
