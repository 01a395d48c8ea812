"""Quantised graphs of our own: what was simulated is what is deployed, and the engines run it in integers."""

from __future__ import annotations

import collections
import dataclasses
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from lissome.compress.batches import forward
from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QuantizeConfig
from lissome.compress.quantize.simulate import simulate
from lissome.compress.quantize.store import check_deployed
from lissome.core.errors import BadInput, MissingExtra, ParityFailed
from lissome.core.quantization import LayerQuant, LayerScales, Quantization, Range, Scales
from lissome.engines.table import Load, load
from lissome.export.forms import Recipe, build_form, form_bytes
from lissome.export.graph import Edits
from lissome.export.parity import relative_error
from lissome.export.qdq import write_quantized
from lissome.export.weight_only import packed, to_bfloat16
from lissome.nn.load import as_model
from tests.export.recipes import SATURATES
from tests.nn import tiny

TIGHT = {"int8-static": 0.02, "int8-dynamic": 5e-3, "w8a16": 1e-5, "w4a16": 1e-5}
"""Weight-only layers compute the same; where activations are rounded, the order of a sum can turn a rounding the other way."""
WAYS = [
    *(("onnxruntime", name, precision) for name in ("bert", "cnn", "mlp_without_bias") for precision in TIGHT),
    *(("openvino", name, precision) for name in ("bert", "cnn", "mlp_without_bias") for precision in ("int8-static", "w8a16", "w4a16")),
]


class Quantised:
    """Quantised tiny models and their forms, made once a test run; weights are left as they are, so that one fp32 export serves all."""

    def __init__(self, forms):
        self.forms, self.made = forms, {}

    def model(self, name, **options):
        key = (name, *sorted(options.items()))
        if key not in self.made:
            recipe = self.forms[name].recipe
            self.made[key] = quantize(recipe.model, QuantizeConfig(smallest=1, reduce_range=SATURATES, **options), recipe.calibration[:4])
        return self.made[key]

    def form(self, name, engine="onnxruntime", **options):
        return build_form(self.forms[name].recipe, engine, "mixed", self.forms.cache, quantized=self.model(name, **options))

    def simulated(self, name, batch, **options):
        quantized = self.model(name, **options)
        with torch.no_grad():
            return forward(simulate(quantized.model.module, quantized.quantization, quantized.scales).eval(), tiny.tensors(batch)).numpy()


@pytest.fixture(scope="session")
def quantised(forms):
    return Quantised(forms)


@pytest.mark.parametrize(("engine", "name", "precision"), WAYS)
def test_simulated_is_deployed(quantised, forms, engine, name, precision):
    session = load(engine, quantised.form(name, engine, precision=precision), Load("mixed", 1))
    for size, length in ((1, 16), (5, 9)):
        batch = forms[name].batch(size, length, size)
        error = relative_error(quantised.simulated(name, batch, precision=precision), session.run(batch))
        assert error < max(TIGHT[precision], 1e-4 if engine == "openvino" else 0), f"batch of {size}"


@pytest.mark.parametrize("group", [16, 128])
@pytest.mark.parametrize("precision", ["w8a16", "w4a16"])
def test_groups_without_symmetry(quantised, forms, precision, group):
    """48 inputs fill neither three groups of 16 evenly in bytes nor one of 128."""
    options = {"precision": precision, "group": group, "symmetric": False}
    batch = forms["mlp"].batch(3, 0, 3)
    found = load("onnxruntime", quantised.form("mlp", **options), Load("mixed", 1)).run(batch)
    assert relative_error(quantised.simulated("mlp", batch, **options), found) < 1e-5


def operators(path, tmp_path):
    """What ONNX Runtime makes of a graph: operator -> how many."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.optimized_model_filepath = 3, 1, str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(str(tmp_path / "optimised.onnx")).graph.node)


FUSED = [
    ("bert", "int8-static", {"MatMulIntegerToFloat": 12, "QGemm": 2}),
    ("bert", "int8-dynamic", {"DynamicQuantizeMatMul": 8, "MatMulIntegerToFloat": 6}),
    ("bert", "w4a16", {"MatMulNBits": 14}),
    ("cnn", "int8-static", {"QLinearConv": 9, "QGemm": 1, "Conv": 0, "Gemm": 0}),
    ("mlp", "int8-static", {"QGemm": 3, "QuantizeLinear": 1, "DequantizeLinear": 0, "Relu": 0}),
]


@pytest.mark.parametrize(("name", "precision", "expected"), FUSED)
def test_onnx_runtime_fuses_all_of_it(quantised, tmp_path, name, precision, expected):
    found = operators(quantised.form(name, precision=precision) / "model.onnx", tmp_path)
    assert {kind: found[kind] for kind in expected} == expected


def test_fused_and_plain_compute_the_same(quantised, forms, tmp_path):
    import onnx

    quantized, batch = quantised.model("bert", precision="int8-static"), forms["bert"].batch(4, 11, 0)
    write_quantized(forms.form("bert", "onnxruntime", "fp32"), tmp_path, quantized.quantization, quantized.scales)
    assert {node.domain for node in onnx.load(str(tmp_path / "model.onnx")).graph.node} == {""}, "plain ONNX"
    assert operators(tmp_path / "model.onnx", tmp_path)["MatMulIntegerToFloat"] == 12
    plain, fused = (load("onnxruntime", form, Load("mixed", 1)).run(batch) for form in (tmp_path, quantised.form("bert", precision="int8-static")))
    assert relative_error(plain, fused) < 1e-6


@pytest.mark.parametrize(("name", "kind", "count"), [("bert", "FullyConnected", 14), ("cnn", "Convolution", 9)])
def test_openvino_runs_it_in_integers(quantised, name, kind, count):
    import openvino as ov

    form = quantised.form(name, "openvino", precision="int8-static")
    core = ov.Core()
    compiled = core.compile_model(core.read_model(str(form / "model.xml")), "CPU", {"INFERENCE_NUM_THREADS": 1})
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [str(info["runtimePrecision"].astype(str)) for info in nodes if str(info["layerType"].astype(str)) == kind]
    assert kinds == ["u8"] * count


@pytest.mark.parametrize("precision", list(TIGHT))
def test_the_graph_is_valid_and_small(quantised, forms, precision):
    import onnx

    form = quantised.form("bert", precision=precision)
    model = onnx.load(str(form / "model.onnx"))
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    assert (form / "form.json").read_text() == (forms.form("bert", "onnxruntime", "fp32") / "form.json").read_text()
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    whole = sum(len(tensor.raw_data) for tensor in onnx.load(str(forms.form("bert", "onnxruntime", "fp32") / "model.onnx")).graph.initializer)
    assert weights < (0.45 if precision == "w4a16" else 0.5) * whole


class Mobile(nn.Module):
    """Depthwise and grouped convolutions with ReLU6, a pooling between, one convolution along a line, and a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2))
        self.point, self.line, self.head = nn.Conv2d(8, 8, 1, groups=2), nn.Conv1d(8, 32, 3, dilation=2), nn.Linear(32, 3)

    def forward(self, images):
        x = self.depth(self.stem(images))
        return self.head(self.line((x + self.point(x)).flatten(2)).mean(-1))


class Shared(nn.Module):
    """One table for two inputs, and one layer called three times, as in ALBERT."""

    def __init__(self):
        super().__init__()
        self.table, self.again, self.head = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, first, second):
        x = self.table(first) + self.table(second).flip(1)
        for _ in range(3):
            x = x + torch.relu(self.again(x))
        return self.head(x.mean(1))


@pytest.mark.parametrize("precision", [*TIGHT, "bf16"])
def test_a_layer_that_is_called_again_keeps_its_weights_once(forms, precision):
    import onnx

    torch.manual_seed(0)
    model = as_model(Shared().eval())
    batches = [{"first": torch.randint(0, 20, (4, 6)), "second": torch.randint(0, 20, (4, 6))} for _ in range(4)]
    config = QuantizeConfig(smallest=1, reduce_range=SATURATES, layers={"*": LayerQuant(precision=precision)})
    quantized = quantize(model, config, batches)
    example = {name: value.numpy() for name, value in batches[0].items()}
    form = build_form(Recipe(model, example, [], ""), "onnxruntime", "mixed", forms.cache, quantized=quantized)
    names = [tensor.name for tensor in onnx.load(str(form / "model.onnx")).graph.initializer]
    for layer in ("table", "again"):
        kinds = [name.removeprefix(f"{layer}.").rstrip("_") for name in names if name.startswith(f"{layer}.")]
        assert kinds
        assert len(kinds) == len(set(kinds)), names
    assert check_deployed(quantized, form, example) < TIGHT.get(precision, 1e-6)


def test_constants_of_one_name_and_other_values_stay_apart():
    from onnx import helper

    edits = Edits(helper.make_model(helper.make_graph([], "empty", [], [])))
    asked = [edits.constant("a", value) for value in (np.float32([1]), np.float32([2]), np.float32([[1]]), np.int32([1]), np.float32([2]), np.float32([1]))]
    assert asked == ["a", "a_", "a__", "a___", "a_", "a"]
    assert [tensor.name for tensor in edits.added.values()] == list(edits.added) == ["a", "a_", "a__", "a___"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_convolutions_of_all_kinds(forms, tmp_path, engine):
    torch.manual_seed(0)
    module = Mobile()
    batches = [{"images": torch.randn(8, 3, 8, 8)} for _ in range(4)]
    for batch in batches:
        module(batch["images"])  # gives the norms statistics
    model = as_model(module.eval())
    quantized = quantize(model, QuantizeConfig(smallest=1, reduce_range=SATURATES), batches)
    example = {"images": batches[0]["images"].numpy()}
    form = build_form(Recipe(model, example, [], ""), engine, "mixed", forms.cache, quantized=quantized)
    assert check_deployed(quantized, form, example, engine) < 0.02
    if engine == "onnxruntime":
        found = operators(form / "model.onnx", tmp_path)
        assert (found["QLinearConv"], found["Conv"], found["QGemm"]) == (4, 0, 1)


def test_openvino_at_fixed_shapes(quantised, forms):
    """Where OpenVINO gives wild values for int8 products of up to 8 rows without a bias; see engines/openvino.py."""
    form = quantised.form("mlp_without_bias", "openvino", precision="int8-static")
    for size in (1, 4, 8, 9):
        batch = forms["mlp_without_bias"].batch(size, 0, size)
        session = load("openvino", form, Load("mixed", 1, {name: array.shape for name, array in batch.items()}))
        assert relative_error(quantised.simulated("mlp_without_bias", batch, precision="int8-static"), session.run(batch)) < 0.02


def test_bfloat16_layers_are_half_as_large_and_exact(quantised, forms):
    layers = {"*": LayerQuant(precision="bf16")}
    quantized = quantize(forms["mlp"].recipe.model, QuantizeConfig(smallest=1, reduce_range=SATURATES, precision="w8a16", layers=layers))
    form = build_form(forms["mlp"].recipe, "onnxruntime", "mixed", forms.cache, quantized=quantized)
    batch = forms["mlp"].batch(4, 0, 1)
    with torch.no_grad():
        expected = forward(simulate(quantized.model.module, quantized.quantization, quantized.scales), tiny.tensors(batch)).numpy()
    assert relative_error(expected, load("onnxruntime", form, Load("mixed", 1)).run(batch)) < 1e-6
    assert form_bytes(form) < 0.75 * form_bytes(forms.form("mlp", "onnxruntime", "fp32"))


def test_a_mixture(quantised, forms):
    """Every precision in one graph."""
    layers = {
        "bert.encoder.layer.0.*": LayerQuant(precision="int8-dynamic"),
        "bert.encoder.layer.0.attention.self.value": LayerQuant(precision="bf16"),
        "*.intermediate.dense": LayerQuant(precision="w4a16", group=32),
        "bert.pooler.dense": LayerQuant(precision="fp32"),
        "bert.embeddings.position_embeddings": LayerQuant(precision="bf16"),
    }
    quantized = quantize(forms["bert"].recipe.model, QuantizeConfig(smallest=1, reduce_range=SATURATES, layers=layers), forms["bert"].recipe.calibration[:4])
    kinds = {quant.precision for quant in quantized.quantization.layers.values()}
    assert kinds == {"int8-dynamic", "int8-static", "w4a16", "w8a16", "bf16"}
    form = build_form(forms["bert"].recipe, "onnxruntime", "mixed", forms.cache, quantized=quantized)
    assert check_deployed(quantized, form, forms["bert"].batch(4, 11, 0)) < 0.02
    with pytest.raises(BadInput, match=r"openvino takes no int8-dynamic layer, which bert\.encoder\.layer\.0"):
        build_form(forms["bert"].recipe, "openvino", "mixed", forms.cache, quantized=quantized)


def test_the_departing_layer_is_named(quantised, forms, tmp_path):
    import onnx
    from onnx import numpy_helper

    form = tmp_path / "broken"
    shutil.copytree(quantised.form("bert", precision="int8-static"), form)
    model = onnx.load(str(form / "model.onnx"))
    weight = next(t for t in model.graph.initializer if t.name == "bert.encoder.layer.1.output.dense.weight_int8")
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save(model, str(form / "model.onnx"))
    with pytest.raises(ParityFailed, match=r"simulated and deployed differ(.|\n)*first layer to depart is bert\.encoder\.layer\.1\.output\.dense"):
        check_deployed(quantised.model("bert", precision="int8-static"), form, forms["bert"].batch(4, 11, 0))


def test_a_cpu_whose_products_overflow_is_named(quantised, forms, tmp_path, monkeypatch):
    from lissome.compress.quantize import store

    monkeypatch.setattr(store, "DEPLOYED", -1.0)
    monkeypatch.setattr(store, "saturates", lambda isa: True)
    eight, seven = (quantize(forms["mlp"].recipe.model, QuantizeConfig(smallest=1, precision="int8-dynamic", reduce_range=reduce)) for reduce in (False, True))
    for quantized, said in ((eight, "set reduce_range: on this CPU products of 8-bit weights overflow"), (seven, "leave that layer in float")):
        form = build_form(forms["mlp"].recipe, "onnxruntime", "mixed", forms.cache, quantized=quantized)
        with pytest.raises(ParityFailed, match=said):
            check_deployed(quantized, form, forms["mlp"].batch(4, 0, 0))


def test_forms_are_kept_by_what_they_compute(quantised, forms):
    one = quantised.form("mlp", precision="int8-static")
    assert quantised.form("mlp", precision="int8-static") == one
    quantized = quantised.model("mlp", precision="int8-static")
    scales = {name: dataclasses.replace(layer, input=Range(layer.input.scale * 1.01, layer.input.zero)) for name, layer in quantized.scales.layers.items()}
    other = dataclasses.replace(quantized, scales=Scales(scales))
    assert build_form(forms["mlp"].recipe, "onnxruntime", "mixed", forms.cache, quantized=other) != one


def test_what_cannot_be_built(quantised, forms, tmp_path):
    recipe, quantized = forms["mlp"].recipe, quantised.model("mlp", precision="int8-static")
    with pytest.raises(BadInput, match="made from a quantised model, and none was given"):
        build_form(recipe, "onnxruntime", "mixed", forms.cache)
    with pytest.raises(BadInput, match="torch takes no precision per layer"):
        build_form(recipe, "torch", "mixed", forms.cache, quantized=quantized)
    source = forms.form("mlp", "onnxruntime", "fp32")
    dense = LayerScales(np.ones(48, np.float32), None, Range(1.0, 0))
    with pytest.raises(BadInput, match="the layer nowhere was not found in the exported graph"):
        write_quantized(source, tmp_path, Quantization(layers={"nowhere": LayerQuant()}), Scales({"nowhere": dense}))
    with pytest.raises(BadInput, match="the layer first is to be int8-static, but has no scales"):
        write_quantized(source, tmp_path, Quantization(layers={"first": LayerQuant()}), Scales())
    with pytest.raises(BadInput, match="its input has no range"):
        write_quantized(source, tmp_path, Quantization(layers={"first": LayerQuant()}), Scales({"first": dataclasses.replace(dense, input=None)}))
    for precision in ("int8-dynamic", "w8a16"):
        convolution = Quantization(layers={"stem.0": LayerQuant(precision=precision)}, norms={"stem.0": "stem.1"})
        with pytest.raises(BadInput, match=f"the convolution stem.0 cannot be {precision}"):
            write_quantized(forms.form("cnn", "onnxruntime", "fp32"), tmp_path, convolution, Scales({"stem.0": dense}))
    assert not list(tmp_path.iterdir())


def test_missing_extra(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra, match="writing a quantised graph needs the package onnx"):
        write_quantized(tmp_path, tmp_path, Quantization(), Scales())


def test_four_bit_codes_are_packed_low_half_first():
    codes = np.array([[1, 2, 3], [15, 0, 7]], np.uint8)
    assert packed(codes, 4).tolist() == [[0x21, 0x03], [0x0F, 0x07]]
    assert packed(codes, 8) is codes


def test_bfloat16_is_torchs():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    values[:3] = [1.00390625, 1.01171875, 0.0]  # halfway between two, down and up to even
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(to_bfloat16(values), expected)
