"""Quantisation-aware training: the weights learn to live with their rounding, and the scales with them.

Starts from what post-training quantisation found, keeps every layer's precision, and gives back weights and scales that deploy as they were trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.compress.quantize.simulate import Step, current_scales, simulate, stripped
from lissome.core.cache import digest
from lissome.core.errors import BadInput, Diverged
from lissome.core.model import Model
from lissome.core.progress import Progress
from lissome.core.quantization import Quantized
from lissome.nn.load import as_model, finished
from lissome.train.batches import ordered
from lissome.train.callbacks import Callback
from lissome.train.config import TrainConfig
from lissome.train.loop import Loss, TrainResult, decayed, train

SCALE_LR = 1e-3
"""Learning rate of the scales' relative change: with Adam, at most about a thousandth of the scale a step."""


def qat(
    model: Model | nn.Module,
    quantized: Quantized,
    loss: Loss,
    batches: Any,
    config: TrainConfig | None = None,
    *,
    scale_lr: float = SCALE_LR,
    callbacks: Sequence[Callback] = (),
    resume: Path | None = None,
    progress: Progress | None = None,
    done: Callable[[TrainResult], None] | None = None,
    deadline: float | None = None,
) -> Quantized:
    """`quantized`, trained by `loss(module, batch)`; neither it nor `model` is changed.

    model: the original that `quantized` was made from; only its name and architecture are used. The weights that training starts from are those of
    `quantized.model`, as its scales belong to them. For distillation let `loss` compare with a teacher's outputs.
    scale_lr: learning rate of the scales, of their relative change (LSQ, Esser et al. 2020, in logarithms); 0 keeps them as they are.
    Batch norms keep their statistics. precision="auto" means float32 here: bfloat16 products would blur the integers that are being trained.
    resume: folder for checkpoints, as in `train`; a run that was killed goes on from its newest one and ends with the same bits.
    done(result): called with what the run did. deadline: as in `train`.
    Raises BadInput when model and quantized do not belong together, and what `train` raises.
    """
    config = config or TrainConfig()
    model = as_model(model)
    _check_same(model, quantized)
    twin = simulate(quantized.model.module, quantized.quantization, quantized.scales, trainable=scale_lr > 0)

    def groups(module: nn.Module) -> list[dict[str, Any]]:
        steps = [step.change for step in module.modules() if isinstance(step, Step) and step.change is not None]
        scales = {id(change) for change in steps}
        weights = decayed(module, config.weight_decay)
        for group in weights:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in scales]
        kept = [group for group in weights if group["params"]]
        return [*kept, {"params": steps, "lr": scale_lr, "weight_decay": 0.0}] if steps else kept

    exact = config.model_copy(update={"precision": "fp32"}) if config.precision == "auto" else config
    identity = digest("qat", quantized.fingerprint, scale_lr)
    result = train(twin, batches, loss, exact, callbacks=callbacks, resume=resume, progress=progress, groups=groups, identity=identity, deadline=deadline)
    if done:
        done(result)
    trained = finished(stripped(twin).eval(), model.architecture, model.ref, model.directory)
    found = Quantized(trained, quantized.quantization, current_scales(twin, quantized.quantization), quantized.notes, quantized.sensitivity)
    _check_finite(found, loss, next(iter(ordered(batches).epoch(0))))
    return found


def _check_same(model: Model, quantized: Quantized) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.module.state_dict().items()}
    own = {name: tuple(tensor.shape) for name, tensor in quantized.model.module.state_dict().items()}
    other = next((name for name in {**shapes, **own} if shapes.get(name) != own.get(name)), None)
    if other:
        raise BadInput(
            f"the quantised model was made from another model: {other} is {own.get(other, 'not in it')} there and {shapes.get(other, 'not in it')} here.",
            do="quantize this model, then train the result",
        )
    if not quantized.quantization.layers:
        raise BadInput("no layer is quantised, so there is nothing to train for.", do="quantize the model first")


@torch.no_grad()
def _check_finite(quantized: Quantized, loss: Loss, batch: Any) -> None:
    """Raise Diverged unless the loss of what was trained is a number; only the caller's loss can read every kind of batch."""
    from accelerate.utils import send_to_device

    twin = simulate(quantized.model.module, quantized.quantization, quantized.scales).eval()
    device = next((p.device for p in twin.parameters()), torch.device("cpu"))
    if not torch.isfinite(loss(twin, send_to_device(batch, device))).all():
        raise Diverged("the trained model gives NaN or infinite outputs.", do=f"lower lr (try {1e-5:g}) or scale_lr")
