"""How much each layer's rounding alone changes the outputs: measured by forward passes, or estimated for all layers at once from gradients; no labels."""

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
    progress, taken = progress or Silent(), _first(batches, examples)
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


def perturbations(
    module: nn.Module, batches: Ordered, quantization: Quantization, scales: Scales, examples: int, progress: Progress | None = None
) -> dict[str, float]:
    """What `sensitivity` measures, estimated for all layers from one forward and one backward pass a batch.

    The divergence that a small change of a layer's output makes is half the mean square of (gradient of the log-likelihood) . (change), to second
    order, with labels drawn from the model's own outputs (the Fisher information; Martens 2020, section 5). For outputs that are no classes a random
    projection takes the place of the log-likelihood, and the relative squared error that of the divergence. What rounding one layer does to the rounding
    of the next is not seen.
    """
    progress, taken = progress or Silent(), _first(batches, examples)
    twin = simulate(module, quantization, scales).eval()
    parts = {name: [twin.get_submodule(name), twin.get_submodule(quantization.output_of(name))] for name in quantization.layers}
    _switch([one for one in twin.modules() if isinstance(one, Simulated | FrozenNorm)], False)
    given: dict[str, list[torch.Tensor]] = {name: [] for name in parts}
    made: dict[str, list[torch.Tensor]] = {name: [] for name in parts}

    def leave(name: str, output: torch.Tensor) -> torch.Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()
        output.retain_grad()
        made[name].append(output)
        return output

    handles = [layers[0].register_forward_pre_hook(lambda _, values, name=name: given[name].append(values[0].detach())) for name, layers in parts.items()]
    handles += [layers[1].register_forward_hook(lambda _, __, output, name=name: leave(name, output)) for name, layers in parts.items()]
    totals, count, generator = dict.fromkeys(parts, 0.0), 0, torch.Generator().manual_seed(0)
    progress.stage("sensitivity by gradients", len(taken))
    try:
        for batch in taken:
            with torch.enable_grad():
                outputs = forward(twin, batch)
                _drawn(outputs, generator).backward()  # type: ignore[no-untyped-call]
            size = len(outputs)
            scale = 0.5 if _classes(outputs) else 1 / float(outputs.detach().double().square().sum(tuple(range(1, outputs.ndim))).mean())
            for name, layers in parts.items():
                moved = torch.zeros(size, dtype=torch.float64)
                for values, output in zip(given[name], made[name], strict=True):
                    if output.grad is not None:
                        change = _rounded(layers, values) - output.detach()
                        moved += (output.grad.double() * change.double()).reshape(size, -1).sum(1)
                totals[name] += scale * float(moved.square().sum())
                given[name], made[name] = [], []
            count += size
            progress.step()
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / count for name, total in totals.items()}


def _drawn(outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sum of the log-likelihoods of labels drawn from the outputs [n, classes]; of other outputs a projection on random signs."""
    if _classes(outputs):
        logs = functional.log_softmax(outputs.float(), -1)
        return logs.gather(1, torch.multinomial(logs.detach().exp(), 1, generator=generator)).sum()
    return (outputs * (torch.randint(0, 2, outputs.shape, generator=generator) * 2 - 1)).sum()


@torch.no_grad()
def _rounded(layers: list[nn.Module], values: torch.Tensor) -> torch.Tensor:
    """What a layer, and the norm that was absorbed into it, give with their rounding, past the hooks."""
    _switch(layers, True)
    try:
        for layer in dict.fromkeys(layers):
            values = layer.forward(values)
        return values
    finally:
        _switch(layers, False)


def _first(batches: Ordered, examples: int) -> list[Any]:
    """The first batches that hold so many examples."""
    taken: list[Any] = []
    for batch in batches.epoch(0):
        taken.append(batch)
        if sum(map(examples_in, taken)) >= examples:
            break
    return taken


def _classes(outputs: torch.Tensor) -> bool:
    return outputs.ndim == 2 and outputs.shape[1] > 1


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
    if _classes(expected):
        p, q = functional.log_softmax(expected.double(), -1), functional.log_softmax(found.double(), -1)
        return float(functional.kl_div(q, p, reduction="batchmean", log_target=True))
    return float((found.double() - expected.double()).square().sum() / expected.double().square().sum().clamp_min(1e-30))
