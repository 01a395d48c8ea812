from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lissome.compress.batches import forward
from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QuantizeConfig
from lissome.compress.quantize.correct import bias_of
from lissome.compress.quantize.sensitivity import divergence
from lissome.compress.quantize.simulate import simulate
from lissome.core.errors import BadInput, BadModel
from lissome.core.quantization import LayerQuant, integers
from lissome.nn.load import as_model
from tests.compress.quantize.conftest import batches_of
from tests.nn import tiny

PRECISIONS = ("int8-static", "int8-dynamic", "w8a16", "w4a16")


def distance(model, quantized, batch):
    expected = forward(model.module, batch)
    found = forward(simulate(quantized.model.module, quantized.quantization, quantized.scales).eval(), batch)
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


@pytest.mark.parametrize("name", ["bert", "cnn", "mlp", "mlp_without_bias"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_close_to_float(zoo, name, precision):
    assert 0 < distance(zoo.model(name), zoo.quantized(name, precision=precision), batches_of(name, 1, seed=5)[0]) < (0.3 if precision == "w4a16" else 0.06)


@pytest.mark.parametrize(("method", "most"), [("minmax", 0.05), ("percentile", 0.1), ("mse", 0.05), ("entropy", 0.8)])
def test_every_method(zoo, method, most):
    """Entropy needs more numbers than these 32 rows give: between so few it clips at will."""
    assert distance(zoo.model("mlp"), zoo.quantized("mlp", method=method), batches_of("mlp", 1, seed=5)[0]) < most


def test_four_bits_err_more_than_eight_and_larger_groups_more_than_smaller(zoo):
    batch = batches_of("mlp", 1, seed=5)[0]
    errors = [distance(zoo.model("mlp"), zoo.quantized("mlp", precision=p, group=g), batch) for p, g in (("w8a16", 32), ("w4a16", 16), ("w4a16", 64))]
    assert errors == sorted(errors)


def test_what_is_chosen(zoo):
    bert = zoo.quantized("bert").quantization.layers
    assert bert["bert.embeddings.word_embeddings"] == LayerQuant(precision="w8a16")
    assert bert["classifier"] == LayerQuant(precision="int8-static")
    cnn = zoo.quantized("cnn")
    assert all(quant.precision == "int8-static" for quant in cnn.quantization.layers.values())
    rounded = {name for name, scales in cnn.scales.layers.items() if scales.output is not None}
    assert "blocks.0.conv2" in rounded, "its result goes into a sum"
    assert "blocks.0.conv1" not in rounded, "its result goes through a ReLU into a layer that rounds it"
    assert set(zoo.quantized("cnn", precision="w8a16").quantization.layers) == {"head"}
    config = QuantizeConfig(smallest=1, group=64, precision="w4a16", symmetric=False)
    assert quantize(zoo.model("mlp"), config).quantization.layers["head"] == LayerQuant(precision="w4a16", group=64, symmetric=False)


def test_small_layers_stay(zoo):
    assert set(quantize(zoo.model("mlp"), QuantizeConfig(precision="int8-dynamic")).quantization.layers) == {"first", "second"}


def test_nothing_given_is_changed_and_the_same_comes_twice(zoo):
    model = zoo.model("cnn")
    before, code = copy.deepcopy(model.module.state_dict()), repr(model.module)
    first, second = (quantize(model, QuantizeConfig(smallest=1), batches_of("cnn")) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != zoo.quantized("cnn", method="minmax").fingerprint
    assert repr(model.module) == code
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


def test_exceptions_by_name_and_pattern(zoo):
    layers = {"*.attention.*": LayerQuant(precision="bf16"), "bert.pooler.dense": LayerQuant(precision="fp32")}
    found = zoo.quantized("bert").quantization.layers
    changed = quantize(zoo.model("bert"), QuantizeConfig(smallest=1, layers=layers), batches_of("bert")).quantization.layers
    assert {name for name in found if changed.get(name) != found[name]} == {name for name in found if ".attention." in name} | {"bert.pooler.dense"}
    assert "bert.pooler.dense" not in changed
    layers = {"first": LayerQuant(precision="int8-static"), "second": LayerQuant(precision="w8a16")}
    found = quantize(zoo.model("mlp"), QuantizeConfig(smallest=1, reduce_range=True, layers=layers), batches_of("mlp")).quantization.layers
    assert [found[name].reduce_range for name in ("first", "second", "head")] == [True, False, True], "7 bits hold for the named layers too"
    with pytest.raises(BadInput, match=r'names "clasifier", which no layer of the model is called\. Did you mean "classifier"'):
        quantize(zoo.model("bert"), QuantizeConfig(layers={"clasifier": LayerQuant()}), batches_of("bert"))


@pytest.mark.parametrize(
    ("model", "pattern", "quant", "expected"),
    [
        ("cnn", "*", LayerQuant(precision="w8a16"), "the convolution stem.0 cannot be w8a16"),
        ("bert", "*word_embeddings", LayerQuant(precision="w4a16", group=32), "takes one symmetric scale a row"),
    ],
)
def test_layers_that_cannot_be_so(zoo, model, pattern, quant, expected):
    with pytest.raises(BadInput, match=expected):
        quantize(zoo.model(model), QuantizeConfig(layers={pattern: quant}), batches_of(model))


@pytest.mark.parametrize(("spare", "count"), [(0.25, 1), (2, 2), (99, 3)])
def test_the_most_sensitive_layers_are_spared(zoo, spare, count):
    found = quantize(zoo.model("mlp"), QuantizeConfig(smallest=1, precision="w4a16", adaptive_layers=spare), batches_of("mlp"))
    assert set(found.sensitivity) == {"first", "second", "head"}
    worst = sorted(found.sensitivity, key=lambda name: -found.sensitivity[name])[:count]
    assert {name for name, quant in found.quantization.layers.items() if quant.precision == "bf16"} == set(worst)
    assert set(found.scales.layers) == set(found.sensitivity) - set(worst)


def test_sensitivity_is_of_one_layer_alone(zoo):
    """Against quantising only that layer."""
    found = quantize(zoo.model("mlp"), QuantizeConfig(smallest=1, precision="w4a16", adaptive_layers=1, sensitivity_examples=32), batches_of("mlp"))
    layers = {"first": LayerQuant(precision="fp32"), "second": LayerQuant(precision="fp32")}
    alone = quantize(zoo.model("mlp"), QuantizeConfig(smallest=1, precision="w4a16", layers=layers), batches_of("mlp"))
    twin = simulate(alone.model.module, alone.quantization, alone.scales).eval()
    batch = {"features": torch.cat([b["features"] for b in batches_of("mlp")])}
    assert found.sensitivity["head"] == pytest.approx(divergence(forward(zoo.model("mlp").module, batch), forward(twin, batch)), rel=1e-3)


def test_divergences():
    p, q = torch.randn(5, 3), torch.randn(5, 3)
    from scipy.stats import entropy

    expected = np.mean([entropy(a, b) for a, b in zip(torch.softmax(p, -1).numpy(), torch.softmax(q, -1).numpy(), strict=True)])
    assert divergence(p, q) == pytest.approx(expected, rel=1e-4)
    assert divergence(p, p) == pytest.approx(0, abs=1e-12)
    assert divergence(torch.ones(4, 1), torch.full((4, 1), 1.1)) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_corrected_biases_take_the_mean_error_out(zoo, name):
    """Layer by layer, on the inputs that the layer has in the float model: the quantised layer's mean output is the float layer's."""
    quantized, data = zoo.quantized(name, bias_correction=True), batches_of(name)
    plain = zoo.quantized(name)
    twin, sums = simulate(quantized.model.module, quantized.quantization, quantized.scales).eval(), {}

    def compare(layer, _, args, output):
        quantised, offset = twin.get_submodule(layer).product(args[0]), bias_of(quantized.model.module, quantized.quantization, layer)
        before = bias_of(plain.model.module, plain.quantization, layer)
        own = quantised - output if quantized.quantization.output_of(layer) == layer else quantised + (offset - before).view(1, -1, 1, 1) - output
        sums.setdefault(layer, []).append(own.movedim(1, -1).flatten(0, -2).double() if own.ndim == 4 else own.double())

    for layer in quantized.quantization.layers:
        plain.model.module.get_submodule(layer).register_forward_hook(lambda m, a, o, layer=layer: compare(layer, m, a, o))
    for batch in data:
        forward(plain.model.module, batch)
    for module in plain.model.module.modules():
        module._forward_hooks.clear()
    for layer, differences in sums.items():
        mean, spread = torch.cat(differences).mean(0), torch.cat(differences).std()
        assert mean.abs().max() < 0.01 * spread + 1e-6, layer


@pytest.mark.parametrize("options", [{}, {"precision": "int8-dynamic", "smooth": 0.5}])
def test_what_needs_data_says_so(zoo, options):
    with pytest.raises(BadInput, match="needs calibration examples, and there are none") as error:
        quantize(zoo.model("mlp"), QuantizeConfig(**options))
    assert "int8-dynamic, w8a16 or w4a16, which work without data" in str(error.value)


TAKES_DATA = [
    {"precision": "int8-static"},
    {"precision": "int8-dynamic", "adaptive_layers": 1},
    {"precision": "w8a16", "bias_correction": True},
    {"precision": "w4a16", "smooth": 0.5},
]


@pytest.mark.parametrize("options", TAKES_DATA)
def test_too_few_examples_and_a_single_class(options):
    config = QuantizeConfig(smallest=1, **options)
    few = [(torch.randn(3, 24), torch.full((3,), 2))]
    with pytest.raises(BadInput, match=r"only 3 calibration examples(.|\n)*at least 8(.|\n)*--least-examples"):
        quantize(as_model(tiny.mlp()), config, few)
    note = "all 9 calibration examples are of class 2: what is found on them may not fit the others"
    assert note in quantize(as_model(tiny.mlp()), config, few * 3).notes
    assert note not in quantize(as_model(tiny.mlp()), config, [*few * 2, (few[0][0], torch.arange(3))]).notes
    assert quantize(as_model(tiny.mlp()), config.model_copy(update={"least_examples": 3}), few)


@pytest.mark.parametrize("options", [*TAKES_DATA, {"precision": "int8-dynamic"}, {"precision": "w8a16"}, {"precision": "w4a16"}])
@pytest.mark.parametrize("empty", [[], [torch.zeros(0, 24)]])
def test_batches_without_an_example(options, empty):
    with pytest.raises(BadInput, match="the calibration batches hold no example"):
        quantize(as_model(tiny.mlp()), QuantizeConfig(smallest=1, **options), empty)


def test_weight_only_layers_need_few_examples():
    """They are run once, to see that numbers come out."""
    assert quantize(as_model(tiny.mlp()), QuantizeConfig(precision="w4a16"), [torch.randn(2, 24)]).notes == ()


@pytest.mark.parametrize("precision", ["int8-dynamic", "w4a16"])
def test_without_data_layers_are_ranked_by_their_weights(precision):
    module = tiny.mlp()
    with torch.no_grad():
        module.second.weight[:, 0] *= 300  # one large channel leaves the others few levels
    found = quantize(as_model(module), QuantizeConfig(smallest=1, precision=precision, group=None, adaptive_layers=1))
    assert found.notes == ("there are no calibration examples, so layers were ranked by how much rounding changes their weights, not the outputs",)
    assert {name for name, quant in found.quantization.layers.items() if quant.precision == "bf16"} == {max(found.sensitivity, key=found.sensitivity.get)}
    plain = quantize(as_model(module), QuantizeConfig(smallest=1, precision=precision, group=None))
    quant, scales, weight = plain.quantization.layers["second"], plain.scales.layers["second"], module.second.weight.detach().numpy()
    error = integers(weight, quant, scales) * scales.weight[:, None] - weight
    assert found.sensitivity["second"] == pytest.approx(np.linalg.norm(error) / np.linalg.norm(weight), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("mlp", {"smallest": 10**6, "precision": "int8-static"}, "fewer than smallest = 1000000 weights stay in float.\n"),
        ("cnn", {"precision": "w8a16"}, "fewer than smallest = 1024 weights stay in float, and convolutions cannot be w8a16"),
        ("cnn", {"precision": "int8-dynamic"}, "take int8-static for convolutions, lower smallest, or name layers in `layers` (--layer)"),
    ],
)
def test_nothing_to_quantise(zoo, model, options, expected):
    with pytest.raises(BadInput, match="no layer is to be quantised") as error:
        quantize(zoo.model(model), QuantizeConfig(**options), batches_of(model))
    assert expected in str(error.value)


class Logarithm(nn.Module):
    """Finite in float; the small weight is rounded to 0, whose logarithm is not."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 4, bias=False)
        with torch.no_grad():
            self.line.weight[:] = torch.tensor([1.0, 1e-6])

    def forward(self, x):
        return torch.log(self.line(x))


def test_a_quantised_model_that_gives_no_numbers():
    with pytest.raises(BadModel, match=r"the quantised model gives NaN or infinite outputs(.|\n)*adaptive_layers"):
        quantize(as_model(Logarithm()), QuantizeConfig(smallest=1, precision="w8a16"), [torch.tensor([[0.0, 1.0]])])


class Unused(nn.Module):
    def __init__(self, branching=False):
        super().__init__()
        self.line, self.other, self.branching = nn.Linear(24, 4), nn.Linear(24, 4), branching

    def forward(self, features):
        return -self.line(features) if self.branching and features.sum() > 0 else self.line(features)


def test_layers_that_no_example_reaches_stay_in_float():
    found = quantize(as_model(Unused()), QuantizeConfig(smallest=1), batches_of("mlp"))
    assert set(found.quantization.layers) == {"line"}
    assert found.notes == ("other stays in float: no calibration example reached it",)


def test_a_model_that_cannot_be_traced():
    with pytest.raises(BadModel, match="cannot be traced"):
        quantize(as_model(Unused(branching=True)), QuantizeConfig(smallest=1), batches_of("mlp"))
    assert quantize(as_model(Unused(branching=True)), QuantizeConfig(smallest=1, precision="int8-dynamic")).scales.layers


def test_iterators_and_tied_weights():
    with pytest.raises(BadInput, match="can be read only once"):
        quantize(as_model(tiny.mlp()), QuantizeConfig(smallest=1), iter(batches_of("mlp")))
    module = nn.ModuleDict({"table": nn.Embedding(50, 24), "head": nn.Linear(24, 50, bias=False)})
    module["head"].weight = module["table"].weight
    found = quantize(as_model(module), QuantizeConfig(smallest=1, precision="int8-dynamic"))
    assert set(found.quantization.layers) == {"table"}


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.line = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, ids, mask):
        return self.line((self.table(ids) * mask[..., None]).sum(1))


@pytest.mark.parametrize("options", [{"precision": "int8-static"}, {"precision": "w4a16", "adaptive_layers": 1, "bias_correction": True}])
def test_tuples_hold_every_input_and_the_labels_last(options):
    torch.manual_seed(0)
    ids, mask, labels = torch.randint(20, (16, 5)), torch.ones(16, 5), torch.arange(16) % 3
    model, config = as_model(TwoInputs()), QuantizeConfig(smallest=1, **options)
    found = quantize(model, config, [(ids, mask, labels)])
    assert set(found.quantization.layers) == {"table", "line"}
    assert found.fingerprint == quantize(model, config, [{"ids": ids.numpy(), "mask": mask, "labels": labels}]).fingerprint
    with pytest.raises(BadInput, match=r"forward takes \(ids, mask\), the task gives \(0\)"):
        quantize(model, config, [(ids, labels)])


def test_near_dead_channels_keep_biases_that_fit():
    module = nn.Sequential(nn.Linear(24, 8))
    with torch.no_grad():
        module[0].weight[3] = 1e-20
        module[0].bias[3] = 5.0
    found = quantize(as_model(module), QuantizeConfig(smallest=1), [torch.randn(16, 24)])
    scales = found.scales.layers["0"]
    assert 5.0 / (scales.input.scale * scales.weight[3]) < 2**31


@pytest.mark.parametrize("wrong", [{"adaptive_layers": 1.5}, {"percentile": 20}, {"precision": "int3"}, {"smooth": 2}])
def test_options_that_make_no_sense(wrong):
    with pytest.raises(ValidationError):
        QuantizeConfig(**wrong)


def test_int8_means_static_unless_that_was_left_open():
    for config, open_ in ((QuantizeConfig(precision="int8"), True), (QuantizeConfig(), True), (QuantizeConfig(precision="int8-static"), False)):
        assert (config.precision, config.open) == ("int8-static", open_)
    assert not QuantizeConfig(precision="w4a16").open
