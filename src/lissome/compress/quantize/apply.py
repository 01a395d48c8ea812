"""Quantisation after training: from a float model and some batches to weights, precisions and scales that can be deployed."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from lissome.compress.batches import examples_in, forward, labels_of
from lissome.compress.quantize.by_inputs import round_weights, scale_by_inputs, weight_only
from lissome.compress.quantize.calibrate import Point, calibrate, extremes
from lissome.compress.quantize.config import QuantizeConfig
from lissome.compress.quantize.correct import bias_of, correct_biases
from lissome.compress.quantize.equalise import absorb_norms, folds, smooth
from lissome.compress.quantize.grids import Search
from lissome.compress.quantize.sensitivity import perturbations, sensitivity, weight_errors
from lissome.compress.quantize.simulate import KINDS, simulate
from lissome.compress.quantize.weights import weight_scales
from lissome.compress.quantize.wiring import NOTHING, RELU, Node, Wiring, feeds_only, trace
from lissome.core.errors import BadInput, BadModel, closest
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.core.quantization import WEIGHT_ONLY, LayerQuant, LayerScales, Quantization, Quantized, Range, Scales
from lissome.nn.load import as_model, finished
from lissome.train.batches import Ordered, ordered


def quantize(model: Model | nn.Module, config: QuantizeConfig | None = None, batches: Any = None, *, progress: Progress | None = None) -> Quantized:
    """Choose a precision for every layer of `model` and the scales that go with it; the model given is left as it was.

    batches: a list, a DataLoader or anything `Ordered`, of inputs alone or with labels; int8-static and smoothing need them. Without batches,
    int8-dynamic and weight-only quantisation do no bias correction, and adaptive layers are ranked by their weights alone.
    Raises BadInput for missing or too few batches, for layers that do not exist and where none is large enough, BadModel for NaN and for models that
    cannot be traced.
    """
    config, progress = config or QuantizeConfig(), progress or Silent()
    model = as_model(model)
    module = copy.deepcopy(model.module).eval()
    layers = chosen_layers(module, config)
    if not layers:
        raise _nothing_chosen(config)
    static = any(quant.precision == "int8-static" for quant in layers.values())
    data, notes = checked_data(batches, config, static=static)
    uncalled = sorted(read_by_attention(module))
    notes += [f"left in float, as nn.MultiheadAttention reads their weights without calling them: {', '.join(uncalled)}"] if uncalled else []
    norms: dict[str, str] = {}
    wiring: Wiring | None = None
    by_inputs = config.by_inputs and bool(weight_only(module, layers))
    if config.by_inputs and not by_inputs:
        raise BadInput(f"{config.rounding} rounds weight-only linear layers, and there is none.", expected="w4a16 or w8a16", do="take --precision w4a16")
    scaled = by_inputs and "awq" in config.rounding
    if data is not None and (static or config.smooth is not None or scaled):
        wiring = trace(module, next(iter(data.epoch(0))))
        norms = absorb_norms(module, wiring)
    if data is not None and wiring is not None and config.smooth is not None:
        notes.append(_smoothed(module, wiring, data, layers, config, config.smooth, progress))
    if data is not None and wiring is not None and scaled:
        notes.append(scale_by_inputs(module, wiring, data, layers, progress))
    quantization = Quantization(layers=layers, norms={conv: norm for conv, norm in norms.items() if conv in layers})
    ranges: dict[Point, Range] = {}
    if data is not None and static:
        points = _points(module, quantization)
        ranges = calibrate(module, data, points, config, progress)
        unreached = [name for name, side in points if side == "input" and (name, side) not in ranges]
        notes += [f"{name} stays in float: no calibration example reached it" for name in unreached]
        quantization = _without(quantization, unreached)
    scales = _scales(module, quantization, ranges, wiring, config.search)
    measured: Mapping[str, float] = {}
    if config.adaptive_layers:
        if data is not None:
            measure = perturbations if config.sensitivity == "gradient" else sensitivity
            measured = measure(module, data, quantization, scales, config.sensitivity_examples, progress)
        else:
            measured = weight_errors(module, quantization, scales)
            notes.append("there are no calibration examples, so layers were ranked by how much rounding changes their weights, not the outputs")
        spared = sorted(measured, key=lambda name: -measured[name])[: config.spared(len(measured))]
        quantization = _spared(quantization, spared, config)
        scales = _scales(module, quantization, ranges, wiring, config.search)
    if data is not None and by_inputs:
        feedback = "gptq" in config.rounding
        rounded = round_weights(module, data, quantization.layers, feedback=feedback, damp=config.damp, progress=progress)
        scales = Scales({**scales.layers, **rounded})
    if config.bias_correction and data is not None:
        correct_biases(module, data, quantization, scales, progress)
    if data is not None:
        _check_finite(module, next(iter(data.epoch(0))), quantization, scales)
    return Quantized(finished(module, model.architecture, model.ref, model.directory), quantization, scales, tuple(notes), measured)


def chosen_layers(module: nn.Module, config: QuantizeConfig) -> dict[str, LayerQuant]:
    """What each layer is to be by the config's precision and exceptions. Raises BadInput for an exception that fits no layer."""
    weight_only = config.precision in ("w8a16", "w4a16")
    own = LayerQuant(
        precision=config.precision,
        group=config.group if weight_only else None,
        symmetric=config.symmetric or not weight_only,
        reduce_range=config.reduce_range,
    )
    candidates = {name: layer for name, layer in module.named_modules() if isinstance(layer, KINDS)}
    tied = _tied(candidates)
    found: dict[str, LayerQuant] = {}
    for name, layer in candidates.items():
        weight: torch.Tensor = layer.weight
        if isinstance(layer, nn.Embedding):
            quant = LayerQuant(precision="w8a16")
        elif not isinstance(layer, nn.Linear) and (config.precision != "int8-static" or getattr(layer, "padding_mode", "zeros") != "zeros"):
            continue
        else:
            quant = own
        if weight.numel() >= config.smallest and name not in tied:
            found[name] = quant
    for pattern, quant in config.layers.items():
        fitting = fnmatch.filter(candidates, pattern)
        if not fitting:
            near = closest(pattern, list(candidates))
            raise BadInput(f'`layers` names "{pattern}", which no layer of the model is called.{near}', expected=", ".join(islice(candidates, 8)) + ", ...")
        for name in fitting:
            _check_suits(name, candidates[name], quant)
        reduce_range = quant.reduce_range or (config.reduce_range and quant.precision.startswith("int8"))
        found.update(dict.fromkeys(fitting, quant.model_copy(update={"reduce_range": reduce_range})))
    functional = read_by_attention(module)
    return {name: quant for name, quant in found.items() if quant.precision != "fp32" and name not in functional}


def read_by_attention(module: nn.Module) -> set[str]:
    """The layers whose weights an nn.MultiheadAttention reads without calling them: whatever takes their place would never run."""
    owners = [name for name, layer in module.named_modules() if isinstance(layer, nn.MultiheadAttention)]
    return {f"{name}.out_proj" if name else "out_proj" for name in owners}


def _check_suits(name: str, layer: nn.Module, quant: LayerQuant) -> None:
    """Raise BadInput where a layer of this kind cannot be computed so."""
    if isinstance(layer, nn.Embedding) and (quant.group is not None or not quant.symmetric):
        raise BadInput(f"the embedding {name} takes one symmetric scale a row.", expected='LayerQuant(precision="w8a16")')
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and quant.precision not in ("fp32", "bf16", "int8-static"):
        raise BadInput(f"the convolution {name} cannot be {quant.precision}.", expected="int8-static, bf16 or fp32", do="name layers more narrowly in `layers`")


def _tied(candidates: Mapping[str, nn.Module]) -> set[str]:
    """Layers whose weights belong to an earlier one too (tied embeddings): equalising or training one would change the other."""
    first: dict[int, str] = {}
    return {name for name, layer in candidates.items() if first.setdefault(layer.weight.data_ptr(), name) != name}  # type: ignore[operator]


def checked_data(batches: Any, config: QuantizeConfig, *, static: bool) -> tuple[Ordered | None, list[str]]:
    """The calibration batches, where there are any, and what should be known of them. static: whether a layer is int8-static.

    Raises BadInput where they are needed and absent, where there is none in them, and where what is found on them would rest on too few.
    """
    if batches is None:
        need = "int8-static" if static else "smooth" if config.smooth is not None else config.rounding if config.by_inputs else ""
        if need:
            raise BadInput(
                f"{need} needs calibration examples, and there are none.",
                expected="100 to 300 examples like those it will meet",
                do="give batches (on the command line --task TASK), or take int8-dynamic, w8a16 or w4a16, which work without data",
            )
        return None, []
    data, examples, labelled, classes = ordered(batches), 0, 0, set[int]()
    for batch in data.epoch(0):
        examples += examples_in(batch)
        labels = labels_of(batch)
        if labels is not None and labels.ndim == 1 and not labels.is_floating_point():
            labelled += len(labels)
            classes.update(labels.tolist())
    if not examples:
        raise BadInput("the calibration batches hold no example.", expected="100 to 300 examples like those it will meet", do="check the data and its filters")
    if not (static or config.smooth is not None or config.adaptive_layers or config.bias_correction or config.by_inputs):
        return data, []  # a batch of them is run to see that the result gives numbers, no more
    if examples < config.least_examples:
        raise BadInput(
            f"there are only {examples} calibration examples.",
            expected=f"at least {config.least_examples}; 100 to 300 are usual",
            do="give more, or lower least_examples (on the command line --least-examples)",
        )
    one = f"all {labelled} calibration examples are of class {min(classes)}: what is found on them may not fit the others" if len(classes) == 1 else ""
    return data, [one] if one else []


def _nothing_chosen(config: QuantizeConfig) -> BadInput:
    """The error for a model in which no layer is to be quantised."""
    convolutions = "" if config.precision == "int8-static" else f", and convolutions cannot be {config.precision}"
    return BadInput(
        f"no layer is to be quantised: those with fewer than smallest = {config.smallest} weights stay in float{convolutions}.",
        expected="a Linear, Conv1d, Conv2d or Embedding that is large enough",
        do=("" if config.precision == "int8-static" else "take int8-static for convolutions, ") + "lower smallest, or name layers in `layers` (--layer)",
    )


def _smoothed(
    module: nn.Module, wiring: Wiring, data: Ordered, layers: Mapping[str, LayerQuant], config: QuantizeConfig, alpha: float, progress: Progress
) -> str:
    """Smooth in place; a sentence on how much of it was possible."""
    linear = [name for name in layers if isinstance(module.get_submodule(name), nn.Linear)]
    found = list(folds(module, wiring, linear))
    targets = [name for fold in found for name in fold.targets]
    seen = extremes(module, data, [(name, "input") for name in targets], targets, progress)
    applied = smooth(module, next(iter(data.epoch(0))), [fold for fold in found if all(t in seen.channels for t in fold.targets)], seen.channels, alpha)
    return f"smoothed {sum(len(fold.targets) for fold in applied)} of {len(linear)} linear layers; before the others lies nothing that could take the factors"


def _points(module: nn.Module, quantization: Quantization) -> list[Point]:
    """Where ranges are needed: what goes into static layers, and what comes out of convolutions."""
    points: list[Point] = []
    for name, quant in quantization.layers.items():
        if quant.precision == "int8-static" and not isinstance(module.get_submodule(name), nn.Embedding):
            points.append((name, "input"))
            if not isinstance(module.get_submodule(name), nn.Linear):
                points.append((quantization.output_of(name), "output"))
    return points


def _scales(module: nn.Module, quantization: Quantization, ranges: Mapping[Point, Range], wiring: Wiring | None, search: Search) -> Scales:
    """Scales of every integer layer. A convolution's result is rounded too, unless a rounding follows anyway."""
    static = {name for name, quant in quantization.layers.items() if quant.precision == "int8-static"}

    def rounds(node: Node) -> bool:
        return wiring is not None and wiring.layer.get(node) in static

    found: dict[str, LayerScales] = {}
    for name, quant in quantization.layers.items():
        layer = module.get_submodule(name)
        if not quant.integer:
            continue
        scales = weight_scales(layer.weight, quant, search if quant.precision in WEIGHT_ONLY else "mse")  # type: ignore[arg-type]
        if isinstance(layer, nn.Embedding) or quant.precision != "int8-static":
            found[name] = scales
            continue
        result = quantization.output_of(name)
        node = wiring.only_call(result) if wiring is not None else None
        alone = isinstance(layer, nn.Linear) or (node is not None and feeds_only(node, (*RELU, *NOTHING), rounds))
        kept = ranges[name, "input"]
        weight = _wide_enough(scales.weight, kept, bias_of(module, quantization, name))
        found[name] = LayerScales(weight, None, kept, None if alone else ranges[result, "output"])
    return Scales(found)


def _wide_enough(weight: np.ndarray, kept: Range, bias: nn.Parameter | None) -> np.ndarray:
    """Weight scales [out] at which the bias fits 32 bits: it is stored in units of input scale times weight scale (near-dead channels only)."""
    if bias is None:
        return weight
    least = bias.detach().abs().cpu().numpy() / (kept.scale * 2.0**30)
    widened: np.ndarray = np.maximum(weight, least.astype(np.float32))
    return widened


def _without(quantization: Quantization, names: list[str]) -> Quantization:
    layers = {name: quant for name, quant in quantization.layers.items() if name not in names}
    return Quantization(layers=layers, norms={conv: norm for conv, norm in quantization.norms.items() if conv in layers})


def _spared(quantization: Quantization, names: list[str], config: QuantizeConfig) -> Quantization:
    if config.adaptive_precision == "fp32":
        return _without(quantization, names)
    bf16 = LayerQuant(precision="bf16")
    return quantization.model_copy(update={"layers": {name: bf16 if name in names else quant for name, quant in quantization.layers.items()}})


@torch.no_grad()
def _check_finite(module: nn.Module, batch: Any, quantization: Quantization, scales: Scales) -> None:
    """Raise BadModel unless the quantised model gives numbers."""
    if not torch.isfinite(forward(simulate(module, quantization, scales).eval(), batch)).all():
        raise BadModel(
            "the quantised model gives NaN or infinite outputs.", do="leave its most sensitive layers in float (adaptive_layers), or try method=minmax"
        )
