from __future__ import annotations

import json
import logging
import sys
import warnings

import pytest

from lissome.core.errors import MissingExtra
from lissome.engines.table import Load, load
from lissome.export.onnx import SCOPES, layer_values, quiet, to_onnx
from lissome.export.parity import first_departure


def described(form):
    return json.loads((form / "form.json").read_text())


@pytest.mark.parametrize(("name", "inputs", "rank"), [("bert", ["input_ids", "attention_mask"], 2), ("cnn", ["images"], 4)])
def test_form(forms, name, inputs, rank):
    import onnx

    folder = forms.form(name, "onnxruntime", "fp32")
    assert {p.name for p in folder.iterdir()} == {"model.onnx", "form.json"}
    model = onnx.load(str(folder / "model.onnx"))
    onnx.checker.check_model(model)
    assert [one.name for one in model.graph.output] == ["output"]
    form = described(folder)
    assert (form["engine"], form["file"], form["inputs"]) == ("onnxruntime", "model.onnx", inputs)
    assert list(form["dims"]) == inputs
    for dims in form["dims"].values():
        free = [i for i, d in enumerate(dims) if isinstance(d, str)]
        assert len(dims) == rank
        assert free == ([0, 1] if name == "bert" else [0])


@pytest.mark.parametrize("name", ["bert", "cnn", "mlp"])
def test_layers_are_the_modules_own(forms, name):
    folder = forms.form(name, "onnxruntime", "fp32")
    named = {layer for layer, _ in forms[name].recipe.model.module.named_modules()}
    layers = described(folder)["layers"]
    assert len(layers) >= 4 or name == "mlp"
    assert set(layers) <= named | {"module"}


@pytest.mark.parametrize("name", ["bert", "cnn", "mlp"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_values_of_layers_are_the_modules_own(forms, name, engine):
    """Every layer that the form still knows has, in another engine, the value it has in torch."""
    batch = forms[name].batch(3, 7, 1)
    expected = load("torch", forms.form(name, "torch", "fp32"), Load("fp32", 1, probes=True)).layers(batch)
    found = load(engine, forms.form(name, engine, "fp32"), Load("fp32", 1, probes=True)).layers(batch)
    comparable = [layer for layer in expected if layer in found and found[layer].shape == expected[layer].shape]
    assert len(comparable) >= {"bert": 24, "cnn": 11, "mlp": 3}[name], "folding takes dropouts and the convolutions before batch norms, nothing else"
    assert first_departure(expected, found, 1e-4) is None


def scope(node):
    """The module in which a node was made."""
    import ast

    scopes = next((p.value for p in node.metadata_props if p.key == SCOPES), "['', '']")
    return ast.literal_eval(scopes)[-2]


def broken_onnx(folder, copy, layer):
    """A copy of a form in which the weights of one layer are negated."""
    import shutil

    import onnx
    from onnx import numpy_helper

    shutil.copytree(folder, copy)
    model = onnx.load(str(copy / "model.onnx"))
    used = {name for node in model.graph.node for name in node.input if scope(node).endswith(f"module.{layer}")}
    weight = max((t for t in model.graph.initializer if t.name in used), key=lambda t: len(t.dims))
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save(model, str(copy / "model.onnx"))
    return copy


BREAKABLE = [
    ("bert", "bert.embeddings.LayerNorm"),
    ("bert", "bert.encoder.layer.0.attention.self.value"),
    ("bert", "bert.encoder.layer.1.output.dense"),
    ("bert", "bert.pooler.dense"),
    ("bert", "classifier"),
    ("mlp", "second"),
]


@pytest.mark.parametrize(("name", "layer"), BREAKABLE)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_broken_layer_is_named(forms, name, layer, engine, tmp_path):
    from lissome.export.quantized import to_openvino

    batch = forms[name].batch(4, 9, 2)
    form = broken_onnx(forms.form(name, "onnxruntime", "fp32"), tmp_path / "broken", layer)
    if engine == "openvino":
        (tmp_path / "ir").mkdir()
        to_openvino(form, tmp_path / "ir", half=False)
        form = tmp_path / "ir"
    expected = load("torch", forms.form(name, "torch", "fp32"), Load("fp32", 1, probes=True)).layers(batch)
    found = load(engine, form, Load("fp32", 1, probes=True)).layers(batch)
    named, error = first_departure(expected, found, 1e-3)
    assert named == layer
    assert error > 0.1


def test_the_last_value_inside_a_layer_counts():
    import onnx
    from onnx import helper

    def node(output, *scopes):
        made = helper.make_node("Relu", ["x"], [output], name=output)
        if scopes:
            made.metadata_props.append(onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value=repr(list(scopes))))
        return made

    nodes = [node("a1", "", "module", "module.a", "mul"), node("b1", "", "module", "module.b", "x"), node("a2", "", "module", "module.a", "add"), node("loose")]
    graph = helper.make_graph(nodes, "g", [], [])
    assert list(layer_values(helper.make_model(graph)).items()) == [("b", "b1"), ("a", "a2")]


def test_missing_extra(forms, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra) as error:
        to_onnx(None, (), tmp_path)
    assert "exporting to ONNX needs the package onnxscript" in str(error.value)
    assert 'pip install "lissome[onnx]"' in str(error.value)


def test_quiet(capfd):
    import os

    logger = logging.getLogger("chatty")
    with quiet():
        print("out")
        print("err", file=sys.stderr)
        logger.warning("warned")
        warnings.warn("warned", stacklevel=1)
    assert capfd.readouterr() == ("", "")
    print("back", flush=True)
    assert logging.root.manager.disable == logging.NOTSET
    assert capfd.readouterr().out == "back\n"
    assert os.path.exists("/")
    with pytest.raises(ValueError, match="passes"), quiet():
        raise ValueError("passes")
    assert logging.root.manager.disable == logging.NOTSET
