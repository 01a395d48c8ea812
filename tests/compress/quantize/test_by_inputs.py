from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lissome.compress.batches import forward
from lissome.compress.qat import qat
from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.by_inputs import collect
from lissome.compress.quantize.config import QuantizeConfig
from lissome.compress.quantize.feedback import output_error
from lissome.compress.quantize.simulate import simulate
from lissome.core.errors import BadConfig, BadInput, BadModel
from lissome.core.progress import Silent
from lissome.core.quantization import integers
from lissome.nn.load import as_model
from lissome.train.batches import ordered
from lissome.train.config import TrainConfig

from .conftest import batches_of

torch.set_num_threads(1)
BY_INPUTS = ["awq", "gptq", "awq+gptq"]


class Wide(nn.Module):
    """Two linear layers with a norm before each: channels can be scaled."""

    def __init__(self):
        super().__init__()
        self.norm, self.first, self.between, self.second = nn.LayerNorm(32), nn.Linear(32, 64), nn.LayerNorm(64), nn.Linear(64, 4)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.second(self.between(torch.relu(self.first(self.norm(features)))))


def wide(seed: int = 0):
    torch.manual_seed(seed)
    module = Wide().eval()
    with torch.no_grad():
        module.norm.weight.copy_(torch.exp(1.5 * torch.randn(32)))  # channels of very different size
        module.between.weight.copy_(torch.exp(1.5 * torch.randn(64)))
    return as_model(module)


def rows(count: int = 6, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return [{"features": torch.randn(16, 8, generator=generator) @ torch.randn(8, 32, generator=torch.Generator().manual_seed(9))} for _ in range(count)]


def made(model, rounding, **options):
    return quantize(model, QuantizeConfig(precision="w4a16", rounding=rounding, smallest=1, **options), rows())


def simulated(quantized):
    return simulate(quantized.model.module, quantized.quantization, quantized.scales).eval()


def away(model, quantized) -> float:
    with torch.no_grad():
        return sum(float((forward(simulated(quantized), batch) - forward(model.module, batch)).square().sum()) for batch in rows())


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**4), st.booleans())
def test_looking_at_inputs_is_never_worse_for_the_first_layer(seed, symmetric):
    """Its inputs are the same in both, so its output error is what the guarantee is of."""
    model = wide(seed)
    inputs = collect(model.module, ordered(rows()), ["first"], Silent())["first"]
    weight = model.module.first.weight.detach()
    errors = []
    for rounding in ("rtn", "gptq"):
        rounded = simulated(made(model, rounding, symmetric=symmetric)).first.quantized_weight().detach()
        errors.append(float(output_error(weight, rounded, inputs.hessian).sum()))
    assert errors[1] <= errors[0] * (1 + 1e-4)


def test_each_way_pays_on_channels_of_different_size():
    model = wide()
    plain = away(model, made(model, "rtn"))
    for rounding in BY_INPUTS:
        assert away(model, made(model, rounding)) < plain, rounding


@pytest.mark.parametrize("rounding", BY_INPUTS)
def test_integers_and_scales_say_all(rounding):
    """What error feedback found is what the weights round to again, so that it deploys and trains as any quantised model does."""
    quantized = made(wide(), rounding, symmetric=False)
    for name, quant in quantized.quantization.layers.items():
        layer, scales = quantized.model.module.get_submodule(name), quantized.scales.layers[name]
        whole = integers(layer.weight.detach().numpy(), quant, scales)
        assert whole.min() >= 0 and whole.max() <= 15
        if "gptq" in rounding:
            restored = (torch.from_numpy(whole - scales.zero[..., None]).float() * torch.from_numpy(scales.weight)[..., None]).view(len(whole), -1)
            assert torch.equal(restored[:, : layer.weight.shape[1]], layer.weight)


def test_scaling_leaves_the_float_model_what_it_was():
    model = wide()
    quantized = made(model, "awq")
    assert any("scaled the inputs of 2 of 2 linear layers" in note for note in quantized.notes)
    assert not torch.equal(quantized.model.module.first.weight, model.module.first.weight)
    for batch in rows():
        torch.testing.assert_close(forward(quantized.model.module, batch), forward(model.module, batch), rtol=1e-4, atol=1e-4)


def test_training_goes_on_from_what_feedback_found():
    model = wide()
    start = made(model, "gptq", group=32)

    def loss(module, batch):
        with torch.no_grad():
            expected = forward(model.module, batch)
        return (forward(module, batch) - expected).square().mean()

    trained = qat(model, start, loss, rows(), TrainConfig(epochs=20, lr=3e-4, precision="fp32"), scale_lr=1e-4)
    assert away(model, trained) < away(model, start)


def test_encoders_take_every_way(zoo):
    plain, found = (zoo.quantized("bert", precision="w4a16", rounding=rounding) for rounding in ("rtn", "awq+gptq"))
    batch = batches_of("bert")[0]
    expected = forward(zoo.model("bert").module, batch)
    errors = [float((forward(simulated(one), batch) - expected).square().sum()) for one in (plain, found)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("options", "batches", "error", "message"),
    [
        ({"rounding": "gptq"}, None, BadInput, "gptq needs calibration examples, and there are none"),
        ({"rounding": "gptq", "precision": "int8-dynamic"}, rows(), BadInput, "gptq rounds weight-only linear layers, and there is none"),
        ({"rounding": "awq"}, [], BadInput, "hold no example"),
        ({"rounding": "gptq"}, [{"features": torch.full((8, 32), float("nan"))}], BadModel, "NaN or infinity in what goes into the layer first"),
    ],
)
def test_what_is_wrong_is_said(options, batches, error, message):
    with pytest.raises(error, match=message):
        quantize(wide(), QuantizeConfig(**{"precision": "w4a16", "smallest": 1, **options}), batches)


@pytest.mark.parametrize("options", [{"rounding": "best"}, {"rounding": "gptq", "bias_correction": True}])
def test_settings_that_do_not_fit(options):
    with pytest.raises((BadConfig, ValueError)):
        QuantizeConfig(precision="w4a16", **options)
