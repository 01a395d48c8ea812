"""A torch twin of what will be deployed: the same integers, the same zero points, in float, and with gradients.

Rounding passes gradients straight through; the gradient of a scale is that of learned step size quantisation (LSQ, Esser et al. 2020).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lissome.compress.quantize.weights import grouped
from lissome.core.errors import BadInput
from lissome.core.quantization import ACTIVATION_HIGH, LayerQuant, LayerScales, Quantization, Range, Scales

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
"""Modules that can be quantised."""


class _Round(torch.autograd.Function):
    """Round half to even; the gradient passes as if nothing had happened."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """Rounded."""
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """Unchanged."""
        return gradients[0]


def _round(x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return found


class _Damp(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        """Unchanged."""
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Multiplied."""
        return gradients[0] * ctx.factor, None


def rounded(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | int, low: int, high: int) -> torch.Tensor:
    """What the integers of `x` stand for: (clamp(round(x / scale) + zero, low, high) - zero) * scale; shapes broadcast."""
    floor, ceiling = torch.as_tensor(low - zero, device=x.device), torch.as_tensor(high - zero, device=x.device)
    return _round(torch.clamp(x / scale, floor, ceiling)) * scale


class Step(nn.Module):
    """A positive scale, start * exp(change): trained by its relative change, so that one learning rate suits scales of every size."""

    def __init__(self, start: Any, trainable: bool):
        super().__init__()
        self.register_buffer("start", torch.as_tensor(np.asarray(start), dtype=torch.float32).clone())
        self.change = nn.Parameter(torch.zeros_like(self.start)) if trainable else None  # type: ignore[arg-type]

    def forward(self, shared_by: int = 1, levels: int = 1) -> torch.Tensor:
        """The scale. shared_by: numbers that share it; with `levels` it damps the gradient as LSQ's section 2.2 does."""
        start: torch.Tensor = self.start  # type: ignore[assignment]
        if self.change is None:
            return start
        scale: torch.Tensor = start * torch.exp(self.change)
        damped: torch.Tensor = _Damp.apply(scale, 1 / math.sqrt(max(1, shared_by * levels)))  # type: ignore[no-untyped-call]
        return damped


class Rounded(nn.Module):
    """A tensor rounded to uint8 and back."""

    def __init__(self, step: Step, zero: int):
        super().__init__()
        self.step, self.zero = step, zero

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` as its integers stand for it."""
        scale = self.step(x[0].numel() if x.ndim else 1, ACTIVATION_HIGH)
        return rounded(x.float(), scale, self.zero, 0, ACTIVATION_HIGH)

    @property
    def range(self) -> Range:
        """The scale as it is now."""
        return Range(float(self.step().detach()), self.zero)


def rounded_dynamically(x: torch.Tensor) -> torch.Tensor:
    """`x` rounded to uint8 over its own range, as ONNX's DynamicQuantizeLinear does it."""
    with torch.no_grad():
        low, high = (v.float() for v in torch.aminmax(x))
        low, high = low.clamp_max(0), high.clamp_min(0)
        scale = (high - low) / ACTIVATION_HIGH
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        zero = torch.round((-low / scale).clamp(0, ACTIVATION_HIGH))
    return rounded(x.float(), scale, zero, 0, ACTIVATION_HIGH)


def _called(*_: Any) -> None:
    """A hook that does nothing. That it is there keeps an nn.TransformerEncoderLayer from its fused kernel, which would read the float weights."""


class Simulated(nn.Module):
    """A layer that computes as it will when quantised. enabled: off, it is the float layer again."""

    layer: Any
    zero: torch.Tensor | None

    def __init__(self, layer: nn.Module, quant: LayerQuant, scales: LayerScales | None, steps: _Steps):
        super().__init__()
        self.layer, self.quant, self.enabled = layer, quant, True
        self.register_forward_pre_hook(_called)
        self.weight_step = Step(scales.weight, steps.trainable) if scales is not None and quant.integer else None
        zero = scales.zero if scales is not None else None
        self.register_buffer("zero", None if zero is None else torch.as_tensor(zero))
        self.input = steps.rounded(scales.input) if scales is not None and scales.input is not None else None
        self.output = steps.rounded(scales.output) if scales is not None and scales.output is not None else None

    @property
    def weight(self) -> torch.Tensor:
        """The float weights, for models that look at a layer's own."""
        found: torch.Tensor = self.layer.weight
        return found

    @property
    def bias(self) -> torch.Tensor | None:
        """The layer's bias."""
        found: torch.Tensor | None = getattr(self.layer, "bias", None)
        return found

    def quantized_weight(self) -> torch.Tensor:
        """The weights as their integers stand for them, in the layer's own shape."""
        weight = self.weight
        if self.quant.precision == "bf16":
            return weight.bfloat16().float()
        if self.weight_step is None:
            return weight
        rows = grouped(weight.float(), self.quant.group)
        low, high = self.quant.levels
        scale = self.weight_step(rows.shape[-1], max(high, 1))[..., None]
        zero = 0 if self.zero is None else self.zero[..., None]
        found = rounded(rows, scale, zero, low, high).reshape(len(weight), -1)
        return found[:, : weight[0].numel()].reshape(weight.shape)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's result before it is rounded itself."""
        layer = self.layer
        if isinstance(layer, nn.Embedding):
            return self._rows(layer, x)
        weight = self.quantized_weight()
        if self.quant.precision == "int8-dynamic":
            x = rounded_dynamically(x)
        elif self.input is not None:
            x = self.input(x)
        if isinstance(layer, nn.Linear):
            return functional.linear(x, weight, layer.bias)
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        found: torch.Tensor = layer._conv_forward(x, weight, layer.bias)  # the one place where torch handles all of its padding modes
        return found

    def _rows(self, table: nn.Embedding, x: torch.Tensor) -> torch.Tensor:
        """The rows of an embedding; only those that are looked up are rounded, as a table may be half of the model."""
        rows: torch.Tensor = table(x)
        if self.weight_step is None:
            return rows.bfloat16().float() if self.quant.precision == "bf16" else rows
        low, high = self.quant.levels
        return rounded(rows.float(), self.weight_step(rows.shape[-1], high)[x][..., None], 0, low, high)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's result."""
        if not self.enabled:
            plain: torch.Tensor = self.layer(x)
            return plain
        result = self.product(x)
        return result if self.output is None else self.output(result)

    def scales(self) -> LayerScales | None:
        """The scales as they are now."""
        if self.weight_step is None:
            return None
        weight = self.weight_step().detach().cpu().numpy().astype(np.float32)
        zero = None if self.zero is None else self.zero.cpu().numpy()
        return LayerScales(weight, zero, None if self.input is None else self.input.range, None if self.output is None else self.output.range)


class FrozenNorm(nn.Module):
    """A batch norm that keeps its statistics while the rest trains; one that was absorbed into a convolution trains its offset only.

    output: rounds what comes out, where the convolution's result stays in integers.
    """

    def __init__(self, norm: nn.Module, absorbed: bool, output: Rounded | None):
        super().__init__()
        self.norm, self.output, self.enabled = norm, output, True
        if absorbed:
            norm.weight.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenNorm:
        """Evaluation mode, always."""
        return super().train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised, and rounded."""
        result: torch.Tensor = self.norm(x)
        return result if self.output is None or not self.enabled else self.output(result)


class _Steps:
    """Makes the roundings of activations. Equal ranges share one scale: they are of one tensor, and the engine rounds it once."""

    def __init__(self, trainable: bool):
        self.trainable, self.made = trainable, dict[Range, Step]()

    def rounded(self, kept: Range) -> Rounded:
        if kept not in self.made:
            self.made[kept] = Step(kept.scale, self.trainable)
        return Rounded(self.made[kept], kept.zero)


def simulate(module: nn.Module, quantization: Quantization, scales: Scales, *, trainable: bool = False) -> nn.Module:
    """A copy of `module` whose layers compute as `quantization` says; with `trainable`, its scales are parameters too.

    Raises BadInput for a layer that the module lacks, that cannot be quantised, or that has no scales.
    """
    twin, steps = copy.deepcopy(module), _Steps(trainable)
    modules = dict(twin.named_modules(remove_duplicate=False))
    made: dict[int, nn.Module] = {}
    owners = {norm: conv for conv, norm in quantization.norms.items()}
    for name, layer in modules.items():
        if name in owners and owners[name] in quantization.layers:
            kept = scales.layers.get(owners[name])
            output = steps.rounded(kept.output) if kept is not None and kept.output is not None else None
            made[id(layer)] = FrozenNorm(layer, True, output)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            made[id(layer)] = FrozenNorm(layer, False, None)
    for name, quant in quantization.layers.items():
        layer = _checked(name, modules.get(name), quant, scales)
        kept = scales.layers.get(name) if quant.integer else None  # scales may be left over from when the layer was an integer one
        if kept is not None and name in quantization.norms:
            kept = LayerScales(kept.weight, kept.zero, kept.input)  # its output is the norm's
        if id(layer) not in made:
            made[id(layer)] = Simulated(layer, quant, kept, steps)
    for name, layer in modules.items():
        if name and id(layer) in made:
            twin.set_submodule(name, made[id(layer)])
        if isinstance(layer, nn.TransformerEncoder):  # ragged batches are for the fused kernel alone; `stripped` gives them back
            layer.enable_nested_tensor, layer.use_nested_tensor = layer.use_nested_tensor, False
    return made.get(id(twin), twin)


def _checked(name: str, layer: nn.Module | None, quant: LayerQuant, scales: Scales) -> nn.Module:
    if not isinstance(layer, KINDS):
        what = "is not in the model" if layer is None else f"is a {type(layer).__name__}, which is not quantised"
        raise BadInput(f'the layer "{name}" {what}.', expected=", ".join(kind.__name__ for kind in KINDS), do="take its name from `named_modules()`")
    if quant.integer and name not in scales.layers:
        raise BadInput(f'the layer "{name}" is to be {quant.precision}, but has no scales.', do="quantize the model again")
    return layer


def stripped(twin: nn.Module) -> nn.Module:
    """The float module inside a simulated one, as a copy: the same architecture as before, with the weights as they are now."""
    module = copy.deepcopy(twin)
    inner: Mapping[type, str] = {Simulated: "layer", FrozenNorm: "norm"}
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if type(layer) in inner and name:
            module.set_submodule(name, getattr(layer, inner[type(layer)]))
        if isinstance(layer, nn.TransformerEncoder):
            layer.use_nested_tensor = layer.enable_nested_tensor
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    found: nn.Module = getattr(module, inner[type(module)]) if type(module) in inner else module
    return found


def current_scales(twin: nn.Module, quantization: Quantization) -> Scales:
    """The scales of a simulated module as they are now."""
    found: dict[str, LayerScales] = {}
    for name, quant in quantization.layers.items():
        layer = twin.get_submodule(name)
        assert isinstance(layer, Simulated)
        scales = layer.scales() if quant.integer else None
        if scales is None:
            continue
        norm = twin.get_submodule(quantization.norms[name]) if name in quantization.norms else None
        if isinstance(norm, FrozenNorm) and norm.output is not None:
            scales = LayerScales(scales.weight, scales.zero, scales.input, norm.output.range)
        found[name] = scales
    return Scales(found)
