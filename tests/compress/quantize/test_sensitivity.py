"""How sensitive a layer is, measured and estimated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QuantizeConfig
from lissome.compress.quantize.sensitivity import perturbations, sensitivity
from lissome.train.batches import ordered
from tests.compress.quantize.conftest import batches_of


def both(zoo, name, examples=512, count=8, **options):
    quantized = zoo.quantized(name, **options)
    data = ordered([one for seed in range(8) for one in batches_of(name, count, 100 * seed)])
    return [way(quantized.model.module, data, quantized.quantization, quantized.scales, examples) for way in (sensitivity, perturbations)]


@pytest.mark.parametrize(("name", "options"), [
    ("mlp", {"precision": "w8a16", "group": None}), ("mlp", {"precision": "int8-static"}),
    ("cnn", {"precision": "int8-static"}), ("bert", {"precision": "int8-dynamic"}),
])  # fmt: skip
def test_the_estimate_is_near_what_is_measured(zoo, name, options):
    measured, estimated = both(zoo, name, **options)
    assert list(measured) == list(estimated)
    weighty = [layer for layer, value in measured.items() if value > 0.2 * max(measured.values())]
    assert len(weighty) >= 2
    for layer in weighty:
        assert abs(math.log(estimated[layer] / measured[layer])) < math.log(2.5), layer


def test_outputs_that_are_no_classes(zoo):
    """A model of one output: the relative squared error, for a linear model exactly what rounding does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 48), nn.Linear(48, 1))
    data = [torch.randn(32, 24) for _ in range(4)]
    quantized = quantize(model, QuantizeConfig(smallest=1, precision="w8a16", group=None), data)
    arguments = (quantized.model.module, ordered(data), quantized.quantization, quantized.scales, 128)
    measured, estimated = sensitivity(*arguments), perturbations(*arguments)
    assert measured["1"] == pytest.approx(estimated["1"], rel=0.2)
    assert measured["0"] == pytest.approx(estimated["0"], rel=0.2)


def test_the_same_layers_are_spared_and_nothing_is_left_behind(zoo):
    options = {"smallest": 1, "precision": "w4a16", "group": None, "adaptive_layers": 1, "sensitivity_examples": 64}
    ways = [quantize(zoo.model("mlp"), QuantizeConfig(**options, sensitivity=way), batches_of("mlp", 8)) for way in ("divergence", "gradient")]
    spared = [{name for name, quant in one.quantization.layers.items() if quant.precision == "bf16"} for one in ways]
    assert spared[0] == spared[1] != set()
    assert all(parameter.grad is None for one in ways for parameter in one.model.module.parameters())


def test_the_same_estimate_twice(zoo):
    assert both(zoo, "mlp", 64, 8)[1] == both(zoo, "mlp", 64, 8)[1]
