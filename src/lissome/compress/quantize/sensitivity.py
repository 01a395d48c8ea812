"""How much each layer's rounding alone changes the outputs; forward passes only, so neither labels nor gradients are needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lissome.compress.batches import examples_in, forward
from lissome.compress.quantize.simulate import FrozenNorm, Simulated, simulate
from lissome.core.progress import Progress, Silent
from lissome.core.quantization import Quantization, Scales
from lissome.train.batches import Ordered


@torch.no_grad()
def sensitivity(
    module: nn.Module, batches: Ordered, quantization: Quantization, scales: Scales, examples: int, progress: Progress | None = None
) -> dict[str, float]:
    """Layer -> mean divergence of the outputs from the float model's when that layer alone is quantised, on the first `examples` examples.

    Classifiers' outputs [n, classes] are compared by KL(p || p_q) in nats; others by their relative squared error.
    """
    progress = progress or Silent()
    taken: list[Any] = []
    for batch in batches.epoch(0):
        taken.append(batch)
        if sum(map(examples_in, taken)) >= examples:
            break
    expected = [forward(module, batch) for batch in taken]
    twin = simulate(module, quantization, scales).eval()
    parts = {name: [twin.get_submodule(name), twin.get_submodule(quantization.output_of(name))] for name in quantization.layers}
    for layers in parts.values():
        _switch(layers, False)
    found = {}
    progress.stage("sensitivity by layer", len(parts))
    for name, layers in parts.items():
        _switch(layers, True)
        weights = [examples_in(batch) for batch in taken]
        values = [divergence(right, forward(twin, batch)) for right, batch in zip(expected, taken, strict=True)]
        found[name] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        _switch(layers, False)
        progress.step()
    return found


@torch.no_grad()
def weight_errors(module: nn.Module, quantization: Quantization, scales: Scales) -> dict[str, float]:
    """Layer -> relative L2 error of its weights as their integers stand for them: what can be said of a layer without data."""
    twin, found = simulate(module, quantization, scales), dict[str, float]()
    for name in quantization.layers:
        layer = twin.get_submodule(name)
        assert isinstance(layer, Simulated)
        weight = layer.weight.double()
        found[name] = float(torch.linalg.vector_norm(layer.quantized_weight() - weight) / torch.linalg.vector_norm(weight).clamp_min(1e-30))
    return found


def _switch(layers: list[nn.Module], on: bool) -> None:
    for layer in layers:
        assert isinstance(layer, Simulated | FrozenNorm)
        layer.enabled = on


def divergence(expected: torch.Tensor, found: torch.Tensor) -> float:
    """KL(p || p_q) of the softmaxed outputs [n, classes], mean over examples; the relative squared error for any other shape."""
    if expected.ndim == 2 and expected.shape[1] > 1:
        p, q = functional.log_softmax(expected.double(), -1), functional.log_softmax(found.double(), -1)
        return float(functional.kl_div(q, p, reduction="batchmean", log_target=True))
    return float((found.double() - expected.double()).square().sum() / expected.double().square().sum().clamp_min(1e-30))
