from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lissome.compress.batches import forward
from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QuantizeConfig
from lissome.compress.quantize.simulate import FrozenNorm, Rounded, Simulated, Step, _Steps, current_scales, rounded, rounded_dynamically, simulate, stripped
from lissome.core.errors import BadInput
from lissome.core.quantization import LayerQuant, LayerScales, Quantization, Range, Scales
from lissome.nn.load import as_model
from tests.compress.quantize.conftest import batches_of


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-3, 2.0), st.integers(0, 255), st.integers(0, 10**6))
def test_rounding_is_torchs_own(scale, zero, seed):
    """torch multiplies by the reciprocal where ONNX divides, so a value between two levels may go the other way."""
    torch.manual_seed(seed)
    x, step = 30 * torch.randn(200), torch.tensor(scale)
    expected = torch.fake_quantize_per_tensor_affine(x, float(step), zero, 0, 255)
    found = rounded(x, step, zero, 0, 255)
    assert ((found - expected).abs() <= 1.01 * step).all()
    assert (found - expected).abs().gt(1e-4 * step).sum() <= 1


def test_ties_go_to_even():
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert rounded(x, torch.tensor(1.0), 7, 0, 255).tolist() == [-2, 0, 0, 2, 2], "whatever the zero point is"


def test_gradients_are_those_of_lsq():
    """Esser et al. 2020, equations 3 and 5: 1 within the range and 0 outside; round(v) - v within it and the bounds outside."""
    x = torch.tensor([-9.0, -0.7, 0.2, 3.3, 40.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (rounded(x, scale, 8, 0, 15) * weights).sum().backward()
    v = (x / scale).detach()
    inside = (v > -8) & (v < 7)
    assert torch.equal(x.grad, weights * inside)
    expected = torch.where(inside, torch.round(v) - v, v.clamp(-8, 7))
    assert scale.grad == pytest.approx(float((weights * expected).sum()), rel=1e-5)


def test_a_step_is_trained_by_its_relative_change():
    step = Step(np.array([0.1, 10.0]), trainable=True)
    step(shared_by=25, levels=4).sum().backward()
    assert torch.allclose(step.change.grad, step.start / 10)
    assert torch.equal(step(), step.start), "before training it is exactly what it was"
    assert list(Step(1.0, trainable=False).parameters()) == []


def test_dynamic_rounding_is_onnxs():
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info(n, t, None) for n, t in (("y", TensorProto.UINT8), ("s", TensorProto.FLOAT), ("z", TensorProto.UINT8))],
    )
    evaluator = ReferenceEvaluator(helper.make_model(graph))
    for seed, shift in enumerate((-3.0, 0.0, 5.0)):
        x = (np.random.default_rng(seed).normal(size=300) + shift).astype(np.float32)
        y, s, z = evaluator.run(None, {"x": x})
        expected = (y.astype(np.float32) - np.float32(z)) * s
        assert np.abs(rounded_dynamically(torch.from_numpy(x)).numpy() - expected).max() <= 1e-5
    assert torch.equal(rounded_dynamically(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("name", ["bert", "cnn", "mlp_without_bias"])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_twin_and_back(zoo, name, trainable):
    quantized = zoo.quantized(name)
    module, batch = quantized.model.module, batches_of(name, 1, seed=7)[0]
    before = copy.deepcopy(module.state_dict())
    twin = simulate(module, quantized.quantization, quantized.scales, trainable=trainable).eval()
    expected, found = forward(module, batch), forward(twin, batch)
    distance = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
    assert 1e-5 < distance < 0.1
    assert any(isinstance(layer, Simulated) for layer in twin.modules())
    back = stripped(twin)
    assert back.state_dict().keys() == before.keys()
    assert all(torch.equal(before[key], value) for key, value in back.state_dict().items())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items()), "the module given is left alone"
    assert torch.equal(forward(back, batch), expected)
    now, then = current_scales(twin, quantized.quantization).arrays(), quantized.scales.arrays()
    assert now.keys() == then.keys()
    assert all(np.array_equal(now[key], then[key]) for key in then)


def test_turned_off_it_is_the_float_layer(zoo):
    quantized = zoo.quantized("mlp")
    twin = simulate(quantized.model.module, quantized.quantization, quantized.scales)
    batch = batches_of("mlp", 1)[0]
    for layer in twin.modules():
        if isinstance(layer, Simulated):
            layer.enabled = False
    assert torch.equal(forward(twin, batch), forward(quantized.model.module, batch))


def test_equal_ranges_share_a_scale(zoo):
    quantized = zoo.quantized("bert")
    twin = simulate(quantized.model.module, quantized.quantization, quantized.scales, trainable=True)
    heads = [twin.get_submodule(f"bert.encoder.layer.0.attention.self.{name}") for name in ("query", "key", "value")]
    assert heads[0].input.step is heads[1].input.step is heads[2].input.step
    assert heads[0].input.step is not twin.get_submodule("bert.encoder.layer.1.attention.self.query").input.step


def test_norms_keep_their_statistics(zoo):
    quantized = zoo.quantized("cnn")
    twin = simulate(quantized.model.module, quantized.quantization, quantized.scales, trainable=True).train()
    norms = [layer for layer in twin.modules() if isinstance(layer, FrozenNorm)]
    assert norms and not any(norm.norm.training or norm.norm.weight.requires_grad for norm in norms)
    before = [norm.norm.running_mean.clone() for norm in norms]
    forward(twin, batches_of("cnn", 1)[0])
    assert all(torch.equal(mean, norm.norm.running_mean) for mean, norm in zip(before, norms, strict=True))


def test_bfloat16_and_plain_layers():
    module = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    layers = {"0": LayerQuant(precision="bf16"), "2": LayerQuant(precision="fp32")}
    twin = simulate(module, Quantization(layers=layers), Scales())
    assert torch.equal(twin[0].quantized_weight(), module[0].weight.bfloat16().float())
    assert torch.equal(twin[2].quantized_weight(), module[2].weight)
    assert twin[0].bias is not None and twin[0].weight.shape == (4, 8)


@pytest.mark.parametrize(
    ("name", "expected"), [("3", 'the layer "3" is not in the model'), ("1", "is a ReLU, which is not quantised"), ("0", "int8-static, but has no scales")]
)
def test_layers_that_cannot_be(name, expected):
    with pytest.raises(BadInput, match=expected):
        simulate(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), Quantization(layers={name: LayerQuant()}), Scales())


@pytest.mark.parametrize("quant", [LayerQuant(precision="w8a16"), LayerQuant(precision="bf16"), LayerQuant(precision="fp32")])
def test_rows_looked_up_are_rows_of_the_rounded_table(quant):
    torch.manual_seed(0)
    table, ids = nn.Embedding(20, 6), torch.tensor([[1, 19, 1], [0, 7, 3]])
    scales = Scales({"": LayerScales(np.linspace(0.01, 0.05, 20).astype(np.float32))})
    twin = Simulated(table, quant, scales.layers[""], _Steps(trainable=True))
    assert torch.equal(twin(ids), twin.quantized_weight()[ids])


class Encoded(nn.Module):
    """torch's own encoder, which in eval mode reads its layers' weights and runs one kernel."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.head = nn.Linear(16, 3)

    def forward(self, features, pad):
        return self.head(self.encoder(features, src_key_padding_mask=pad)[:, 0])


def encoded():
    torch.manual_seed(0)
    pad = torch.zeros(8, 5, dtype=torch.bool)
    pad[::2, 3:] = True
    return as_model(Encoded().eval()), {"features": torch.randn(8, 5, 16), "pad": pad}


@pytest.mark.parametrize("options", [{"precision": "int8-static"}, {"precision": "w4a16"}, {"precision": "int8-static", "smooth": 0.5}])
@torch.no_grad()
def test_torchs_fused_encoder_is_simulated(options):
    model, batch = encoded()
    found = quantize(model, QuantizeConfig(smallest=1, **options), [batch])
    layers = [f"encoder.layers.{i}" for i in (0, 1)]
    assert set(found.quantization.layers) == {f"{layer}.linear{i}" for layer in layers for i in (1, 2)} | {"head"}
    note = "left in float, as nn.MultiheadAttention reads their weights without calling them: "
    assert found.notes[0] == note + ", ".join(f"{layer}.self_attn.out_proj" for layer in layers)
    twin = simulate(found.model.module, found.quantization, found.scales).eval()
    simulated = twin(**batch)
    assert torch.equal(simulated, forward(twin, batch))
    distance = torch.linalg.vector_norm(simulated - forward(model.module, batch)) / torch.linalg.vector_norm(simulated)
    assert 1e-4 < distance < 0.3
    for layer in layers:  # what was seen is not the head's rounding alone
        twin.get_submodule(f"{layer}.linear1").enabled = twin.get_submodule(f"{layer}.linear2").enabled = False
    assert not torch.allclose(twin(**batch), simulated, rtol=1e-5, atol=1e-6)
    back = stripped(twin)
    assert torch.equal(back(**batch), found.model.module(**batch)), "and it is torch's own again"
    assert back.encoder.use_nested_tensor


def test_attention_s_own_layer_cannot_be_asked_for():
    model, batch = encoded()
    layers = {"*.out_proj": LayerQuant(precision="bf16")}
    found = quantize(model, QuantizeConfig(smallest=1, precision="w8a16", layers=layers), [batch])
    assert not any("out_proj" in name for name in found.quantization.layers)


def test_one_module_under_two_names():
    line = nn.Linear(4, 4)
    module = nn.ModuleDict({"a": line, "b": line})
    scales = LayerScales(np.full(4, 0.1, np.float32), None, Range(0.1, 128))
    twin = simulate(module, Quantization(layers={"a": LayerQuant()}), Scales({"a": scales}))
    assert isinstance(twin["a"], Simulated)
    assert twin["a"] is twin["b"]


def test_rounded_gives_its_range_back():
    assert Rounded(Step(0.25, trainable=True), 3).range == Range(0.25, 3)


def test_a_layer_back_in_float_does_not_round_its_input():
    """Its scales may still be there."""
    layer, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(5, 4)
    scales = Scales({"0": LayerScales(np.full(3, 0.1, dtype=np.float32), input=Range(0.5, 128))})
    found = simulate(layer, Quantization(layers={"0": LayerQuant(precision="fp32")}), scales)(x)
    torch.testing.assert_close(found, layer(x))
