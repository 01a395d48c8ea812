from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from lissome.core.errors import MissingExtra
from lissome.engines.table import Load, load
from lissome.export import quantized
from lissome.export.parity import TOLERANCE, relative_error
from tests.export.recipes import SATURATES

INT8 = [("onnxruntime", "int8-dynamic"), ("onnxruntime", "int8-static"), ("openvino", "int8-static")]


@pytest.mark.parametrize("name", ["bert", "cnn", "mlp", "mlp_without_bias"])
@pytest.mark.parametrize(("engine", "precision"), INT8)
def test_within_tolerance(forms, name, engine, precision):
    form = forms.form(name, engine, precision)
    session = load(engine, form, Load(precision, 1))
    batch = forms[name].batch(16, 21, 5)
    error = relative_error(forms[name].reference(batch), session.run(batch))
    assert 1e-6 < error < 0.2 < TOLERANCE[precision], "quantised, and not by much"


@pytest.mark.parametrize(("engine", "precision"), [*INT8, ("openvino", "fp32"), ("openvino", "bf16")])
def test_what_is_in_the_folder(forms, engine, precision):
    form = forms.form("bert", engine, precision)
    files = {"model.onnx"} if engine == "onnxruntime" else {"model.xml", "model.bin"}
    assert {p.name for p in form.iterdir()} == files | {"form.json"}
    described = json.loads((form / "form.json").read_text())
    assert (form / described["file"]).is_file()
    assert described["inputs"] == ["input_ids", "attention_mask"]
    assert described["layers"]


@pytest.mark.parametrize(("engine", "precision", "most"), [(*INT8[0], 0.45), (*INT8[1], 0.45), (*INT8[2], 0.75), ("openvino", "bf16", 0.75)])
def test_smaller_than_fp32(forms, engine, precision, most):
    """Of so small a model the graph is a good part; the weights alone shrink to a quarter or a half."""
    weights = "model.onnx" if engine == "onnxruntime" else "model.bin"
    small, whole = forms.form("bert", engine, precision) / weights, forms.form("bert", engine, "fp32") / weights
    assert small.stat().st_size < most * whole.stat().st_size


def test_only_graphs_with_attention_have_attention(forms):
    found = {name: quantized.has_attention(forms.form(name, "onnxruntime", "fp32")) for name in ("bert", "cnn", "mlp")}
    assert found == {"bert": True, "cnn": False, "mlp": False}


def test_a_softmax_at_the_end_is_no_attention(tmp_path):
    import onnx
    from onnx import helper

    def save(*nodes):
        onnx.save(helper.make_model(helper.make_graph(list(nodes), "g", [], [])), str(tmp_path / "model.onnx"))
        return quantized.has_attention(tmp_path)

    softmax, product = helper.make_node("Softmax", ["a"], ["s"]), helper.make_node("MatMul", ["s2", "v"], ["o"])
    assert not save(helper.make_node("MatMul", ["a", "b"], ["s2"]), softmax)
    assert not save(softmax, product)
    assert save(softmax, helper.make_node("Dropout", ["s"], ["s2"]), product)
    assert save(helper.make_node("Attention", ["q", "k", "v"], ["o"]))


def test_calibration_decides_the_ranges(forms, tmp_path):
    """Activations beyond what calibration saw are clipped: the data are really used."""
    recipe = forms["mlp"].recipe
    source = forms.form("mlp", "onnxruntime", "fp32")
    batch = forms["mlp"].batch(16, 0, 5)
    errors = []
    for scale in (1.0, 0.1):
        folder = tmp_path / str(scale)
        folder.mkdir()
        quantized.onnx_int8_static(source, folder, [{k: v * np.float32(scale) for k, v in b.items()} for b in recipe.calibration], reduce_range=False)
        errors.append(relative_error(forms["mlp"].reference(batch), load("onnxruntime", folder, Load("int8-static", 1)).run(batch)))
    assert errors[0] < 0.2 < 0.5 < errors[1]


def test_seven_bits_for_cpus_whose_products_saturate(forms, tmp_path):
    import onnx
    from onnx import numpy_helper

    source = forms.form("mlp", "onnxruntime", "fp32")
    for reduce in (False, True):
        folder = tmp_path / str(reduce)
        folder.mkdir()
        quantized.onnx_int8_dynamic(source, folder, reduce_range=reduce)
        weights = [numpy_helper.to_array(t) for t in onnx.load(str(folder / "model.onnx")).graph.initializer if t.name.endswith("_quantized")]
        assert weights
        assert max(np.abs(w).max() for w in weights) == (64 if reduce else 127)


def test_seven_bits_on_openvino(forms, tmp_path):
    """NNCF keeps each weight as a code of 8 bits; in every layer of 7 bits no code lies in the outer half."""
    import openvino as ov

    source = forms.form("mlp", "onnxruntime", "fp32")
    for reduce in (False, True):
        folder = tmp_path / str(reduce)
        folder.mkdir()
        quantized.openvino_int8_static(source, folder, forms["mlp"].recipe.calibration, reduce_range=reduce)
        nodes = ov.Core().read_model(str(folder / "model.xml")).get_ops()
        codes = [node.data for node in nodes if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i8]
        assert len(codes) == 3
        assert all((np.abs(code.astype(int)).max() <= 64) == reduce for code in codes)


@pytest.mark.parametrize(("package", "extra", "make"), [
    ("onnxruntime", "onnx", lambda at: quantized.onnx_int8_dynamic(at, at, reduce_range=False)),
    ("onnxruntime", "onnx", lambda at: quantized.onnx_int8_static(at, at, [], reduce_range=False)),
    ("openvino", "openvino", lambda at: quantized.to_openvino(at, at, half=False)),
    ("nncf", "openvino", lambda at: quantized.openvino_int8_static(at, at, [], reduce_range=False)),
])  # fmt: skip
def test_missing_extras(monkeypatch, tmp_path, package, extra, make):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "form.json").write_text('{"inputs": []}')
    with pytest.raises(MissingExtra) as error:
        make(tmp_path)
    assert f"needs the package {package}, which is not installed" in str(error.value)
    assert f'pip install "lissome[{extra}]"' in str(error.value)


@pytest.mark.parametrize(("engine", "precision"), [("onnxruntime", "fp32"), *INT8, ("openvino", "bf16")])
def test_exporters_print_nothing(tmp_path, capfd, engine, precision):
    from tests.export.recipes import Forms

    fresh = Forms(tmp_path)
    assert fresh["mlp"].recipe.inputs == ("features",)
    capfd.readouterr()
    fresh.form("mlp", engine, precision)
    assert capfd.readouterr() == ("", "")


def test_the_default_operators_quantise_the_attention_mask_too(forms, tmp_path, monkeypatch):
    """Why PRODUCTS is there: with ONNX Runtime's own list the sum of scores and mask takes its scale from the mask."""
    source, ours = (forms.form("bert", "onnxruntime", precision) for precision in ("fp32", "int8-static"))
    batch = forms["bert"].batch(16, 21, 5)
    monkeypatch.setattr(quantized, "has_attention", lambda source: False)
    quantized.onnx_int8_static(source, tmp_path, forms["bert"].recipe.calibration, reduce_range=SATURATES)
    errors = [relative_error(forms["bert"].reference(batch), load("onnxruntime", form, Load("int8-static", 1)).run(batch)) for form in (tmp_path, ours)]
    assert errors[0] > 1 > 0.2 > errors[1]
