"""Weight-only layers of any module rounded by what goes into them: `feedback` for models that are in memory whole.

Inputs are those of the float model; decoders too large for that go block by block (`decoder`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from lissome.compress.batches import forward
from lissome.compress.quantize.calibrate import Point, look_through
from lissome.compress.quantize.equalise import fold_in, folds
from lissome.compress.quantize.feedback import Inputs, channel_scales, round_by_inputs
from lissome.compress.quantize.weights import layer_scales, rule_of, weight_grid
from lissome.compress.quantize.wiring import Wiring
from lissome.core.progress import Progress
from lissome.core.quantization import WEIGHT_ONLY, LayerQuant, LayerScales
from lissome.train.batches import Ordered

HELD = 1 << 30
"""Bytes of H matrices held at once; more layers take another pass over the batches."""


def weight_only(module: nn.Module, layers: Mapping[str, LayerQuant]) -> dict[str, LayerQuant]:
    """The linear layers whose weights alone are rounded."""
    return {name: quant for name, quant in layers.items() if quant.precision in WEIGHT_ONLY and isinstance(module.get_submodule(name), nn.Linear)}


def collect(module: nn.Module, batches: Ordered, names: Iterable[str], progress: Progress) -> dict[str, Inputs]:
    """The inputs of linear layers over all batches. Raises BadModel, naming the layer, where they are not finite."""
    layers: dict[str, Any] = {name: module.get_submodule(name) for name in names}
    found = {name: Inputs(layer.in_features) for name, layer in layers.items()}

    def look(point: Point, value: torch.Tensor) -> None:
        found[point[0]].add(value, f"the layer {point[0]}")

    look_through(module, batches, [(name, "input") for name in layers], look, "calibrate: inputs", progress)
    return found


@torch.no_grad()
def scale_by_inputs(module: nn.Module, wiring: Wiring, batches: Ordered, layers: Mapping[str, LayerQuant], progress: Progress) -> str:
    """Scale channels as AWQ does where that is exact, in place; a sentence on how much of it was possible."""
    wanted = weight_only(module, layers)
    found = [fold for fold in folds(module, wiring, wanted) if all(name in wanted for name in fold.targets)]
    seen = collect(module, batches, [fold.targets[0] for fold in found], progress)  # the targets of a fold have the same input
    batch, applied = next(iter(batches.epoch(0))), 0
    before = forward(module, batch)
    for fold in found:
        quant = wanted[fold.targets[0]]
        weights: list[Any] = [module.get_submodule(name).weight for name in fold.targets]
        scales = channel_scales([weight.float() for weight in weights], seen[fold.targets[0]], quant.group, rule_of(quant))
        if fold_in(module, batch, fold, scales, before):
            applied += len(fold.targets)
    return f"scaled the inputs of {applied} of {len(wanted)} linear layers; before the others lies nothing that could take the factors"


@torch.no_grad()
def round_weights(
    module: nn.Module, batches: Ordered, layers: Mapping[str, LayerQuant], *, feedback: bool, damp: float, progress: Progress
) -> dict[str, LayerScales]:
    """Scales of the weight-only linear layers, by their inputs. feedback: and their weights, in place, become what their integers stand for.

    Without it grids are searched with errors weighted by the inputs' energy, and the weights are left as they are.
    """
    wanted = weight_only(module, layers)
    found: dict[str, LayerScales] = {}
    for names in _portions(module, wanted):
        for name, inputs in collect(module, batches, names, progress).items():
            layer, quant = module.get_submodule(name), wanted[name]
            weight: torch.Tensor = layer.weight  # type: ignore[assignment]
            if feedback:
                codes, grid = round_by_inputs(weight.float(), inputs.hessian, quant.group, rule_of(quant), damp)
                weight.copy_(grid.values(codes))
            else:
                grid = weight_grid(weight, quant, importance=inputs.hessian.diagonal())
            found[name] = layer_scales(grid, quant)
    return found


def _portions(module: nn.Module, names: Iterable[str]) -> Iterator[list[str]]:
    """Names whose H matrices fit together."""
    portion: list[str] = []
    held = 0
    for name in names:
        layer: Any = module.get_submodule(name)
        size = 4 * layer.in_features**2
        if portion and held + size > HELD:
            yield portion
            portion, held = [], 0
        portion.append(name)
        held += size
    if portion:
        yield portion
