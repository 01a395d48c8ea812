"""A quantised model on disk: the float weights as `save_model` writes them, the precisions and scales, and the form that an engine runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lissome.compress.batches import forward
from lissome.compress.quantize.simulate import FrozenNorm, Simulated, simulate
from lissome.core.errors import ParityFailed
from lissome.core.quantization import QUANTIZATION, Quantized, read_quantization, write_quantization
from lissome.engines.table import MIXED, Load, load
from lissome.export.parity import Parity, first_departure, relative_error
from lissome.machine.identity import identify, saturates
from lissome.nn.load import load_model, save_model

DEPLOYED = 0.1
"""Allowed relative L2 distance between what was simulated and what the engine computes. Equal up to the order of sums, they differ where that turns a
rounding the other way: 0.001 to 0.01 on MiniLM's six layers, and up to 0.03 on tiny random models; a wrong scale or zero point gives 0.3 and more."""


def save_quantized(quantized: Quantized, folder: Path) -> None:
    """Write the model, quantization.json and scales.safetensors into `folder`."""
    save_model(quantized.model, folder)
    write_quantization(quantized.quantization, quantized.scales, folder)


def load_quantized(folder: Path) -> Quantized:
    """Read what `save_quantized` wrote. Raises BadModel for the model, BadInput for the quantisation."""
    quantization, scales = read_quantization(folder)
    return Quantized(load_model(str(folder)), quantization, scales)


def is_quantized(ref: str) -> bool:
    """Whether `ref` is a folder that `save_quantized` wrote."""
    return (Path(ref) / QUANTIZATION).is_file()


@torch.no_grad()
def check_deployed(quantized: Quantized, form: Path, batch: dict[str, Any], engine: str = "onnxruntime") -> float:
    """Relative L2 distance of the form's outputs from the simulated ones on `batch`.

    Raises ParityFailed above DEPLOYED, naming the first layer that departs.
    """
    twin = simulate(quantized.model.module, quantized.quantization, quantized.scales).eval()
    expected, session = forward(twin, batch).float().numpy(), load(engine, form, Load(MIXED, 1))
    error = relative_error(expected, session.run(batch))
    if error <= DEPLOYED:
        return error
    probed = load(engine, form, Load(MIXED, 1, probes=True)).layers(batch)
    departed = first_departure(_values(twin, batch, probed), probed, DEPLOYED)
    layers = quantized.quantization.layers.values()
    overflows = saturates(identify().isa) and any(quant.precision.startswith("int8") and not quant.reduce_range for quant in layers)
    raise ParityFailed(
        f"simulated and deployed differ: {Parity(error, DEPLOYED, *(departed or (None, None))).sentence()}.",
        do="set reduce_range: on this CPU products of 8-bit weights overflow"
        if overflows
        else "leave that layer in float: give it the precision fp32 in `layers` (--layer NAME=fp32)",
    )


def _values(module: torch.nn.Module, batch: Any, names: Any) -> dict[str, Any]:
    """Outputs of the layers among `names`, in the order they ran; a module of several layers has no value of its own in a graph."""
    seen: dict[str, Any] = {}

    def keep(name: str, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            seen.pop(name, None)
            seen[name] = output.float().numpy().copy()

    layers = {name: one for name, one in module.named_modules() if name in names and (isinstance(one, Simulated | FrozenNorm) or not list(one.children()))}
    handles = [layer.register_forward_hook(lambda _, __, output, name=name: keep(name, output)) for name, layer in layers.items()]
    try:
        forward(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen
