"""Empirical bias correction: what rounding shifts on average is taken back in the bias (Nagel et al. 2019, section 4.2)."""

from __future__ import annotations

import torch
from torch import nn

from lissome.compress.batches import forward
from lissome.compress.quantize.simulate import Simulated, simulate
from lissome.core.progress import Progress, Silent
from lissome.core.quantization import Quantization, Scales
from lissome.train.batches import Ordered


@torch.no_grad()
def correct_biases(module: nn.Module, batches: Ordered, quantization: Quantization, scales: Scales, progress: Progress | None = None) -> int:
    """Shift the biases of `module` in place, so that each layer's mean output over the batches is what it was in float; return how many there were.

    Each layer is compared on the inputs it has in the float model. Layers without a bias, and embeddings, are left as they are.
    """
    progress = progress or Silent()
    twin = simulate(module, quantization, scales).eval()
    biases = {name: bias for name in quantization.layers if (bias := bias_of(module, quantization, name)) is not None}
    sums = {name: torch.zeros_like(bias, dtype=torch.float64) for name, bias in biases.items()}
    counts = dict.fromkeys(biases, 0)

    def compare(name: str, x: torch.Tensor, output: torch.Tensor) -> None:
        simulated = twin.get_submodule(name)
        assert isinstance(simulated, Simulated)
        difference = (simulated.product(x) - output).double()
        channel = difference.ndim - 1 if isinstance(simulated.layer, nn.Linear) else difference.ndim - (2 if isinstance(simulated.layer, nn.Conv1d) else 3)
        flat = difference.movedim(channel, -1).reshape(-1, difference.shape[channel])
        sums[name] += flat.sum(0)
        counts[name] += len(flat)

    progress.stage("correct biases", len(batches) or None)
    handles = [module.get_submodule(name).register_forward_hook(lambda _, args, output, name=name: compare(name, args[0], output)) for name in biases]
    try:
        for batch in batches.epoch(0):
            forward(module, batch)
            progress.step()
    finally:
        for handle in handles:
            handle.remove()
    for name, bias in biases.items():
        bias.sub_((sums[name] / max(1, counts[name])).to(bias.dtype))
    return len(biases)


def bias_of(module: nn.Module, quantization: Quantization, name: str) -> nn.Parameter | None:
    """What is added to the layer's result: its own bias, or that of the norm that was absorbed into it; None where there is none."""
    if isinstance(module.get_submodule(name), nn.Embedding):
        return None
    bias = getattr(module.get_submodule(quantization.output_of(name)), "bias", None)
    return bias if isinstance(bias, nn.Parameter) else None
