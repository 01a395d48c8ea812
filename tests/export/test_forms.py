from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from lissome.core.cache import Cache
from lissome.core.errors import BadInput, BadModel
from lissome.engines.table import ENGINES, PRECISIONS, Load, load
from lissome.export import forms as room
from lissome.export.forms import FORMS, Recipe, build_form, form_bytes, form_key
from lissome.export.parity import relative_error
from lissome.nn.load import as_model, fingerprint, load_model
from tests.nn import tiny


@pytest.fixture(scope="module")
def recipe():
    return Recipe(load_model("tests.nn.tiny:mlp"), tiny.rows(2), [tiny.rows(8, 1)], "noise")


def changed(recipe, **changes):
    return dataclasses.replace(recipe, **changes)


class TestKey:
    def test_the_same_twice(self, recipe):
        again = Recipe(load_model("tests.nn.tiny:mlp"), tiny.rows(5, 3), [], "noise")
        assert form_key(recipe, "onnxruntime", "fp32") == form_key(again, "onnxruntime", "fp32")

    def test_torch_and_its_compiler_share_a_form(self, recipe):
        assert form_key(recipe, "torch", "fp32") == form_key(recipe, "torch.compile", "fp32")

    def test_engines_and_precisions_differ(self, recipe):
        keys = {form_key(recipe, engine, precision) for engine in FORMS for precision in FORMS[engine]}
        assert len(keys) == sum(len(precisions) for engine, precisions in FORMS.items() if engine != "torch.compile")

    def test_weights(self, recipe):
        module = copy.deepcopy(recipe.model.module)
        module.head.bias.data[0] += 1e-3
        other = changed(recipe, model=dataclasses.replace(recipe.model, module=module, fingerprint=fingerprint(module)))
        assert form_key(recipe, "torch", "fp32") != form_key(other, "torch", "fp32")

    def test_calibration_matters_where_it_is_used(self, recipe):
        other = changed(recipe, calibration_key="other")
        assert form_key(recipe, "openvino", "int8-static") != form_key(other, "openvino", "int8-static")
        assert form_key(recipe, "onnxruntime", "int8-dynamic") == form_key(other, "onnxruntime", "int8-dynamic")

    @pytest.mark.parametrize(
        "example",
        [{"rows": tiny.rows(2)["features"]}, {"features": tiny.rows(2)["features"].astype(np.float64)}, {"features": tiny.rows(2, width=12)["features"]}],
    )
    def test_what_a_trace_fixes(self, recipe, example):
        assert form_key(recipe, "onnxruntime", "fp32") != form_key(changed(recipe, example=example), "onnxruntime", "fp32")

    def test_free_lengths(self, recipe):
        free = changed(recipe, variable_length=True)
        assert recipe.traced == [("features", "float32", ["n", 24])]
        assert free.traced == [("features", "float32", ["n", "n"])]
        assert form_key(recipe, "onnxruntime", "fp32") != form_key(free, "onnxruntime", "fp32")
        assert form_key(recipe, "onnxruntime", "fp32") != form_key(changed(recipe, reduce_range=True), "onnxruntime", "fp32")

    def test_versions(self, recipe, monkeypatch):
        before = form_key(recipe, "torch", "fp32")
        monkeypatch.setattr(room, "versions", lambda: {"torch": "9.9"})
        assert form_key(recipe, "torch", "fp32") != before


class TestCache:
    def test_built_once(self, recipe, tmp_path, monkeypatch):
        built, real = [], room._build
        monkeypatch.setattr(
            room, "_build", lambda recipe, engine, precision, *rest: built.append((engine, precision)) or real(recipe, engine, precision, *rest)
        )
        cache = Cache(tmp_path)
        first = [build_form(recipe, "onnxruntime", precision, cache) for precision in FORMS["onnxruntime"]]
        assert built == [("onnxruntime", precision) for precision in FORMS["onnxruntime"]], "the int8 forms start from the one fp32 export"
        assert [build_form(recipe, "onnxruntime", precision, Cache(tmp_path)) for precision in FORMS["onnxruntime"]] == first
        build_form(recipe, "openvino", "fp32", cache)
        build_form(recipe, "torch", "fp32", cache)
        build_form(recipe, "torch.compile", "fp32", cache)
        assert built[3:] == [("openvino", "fp32"), ("torch", "fp32")]

    def test_a_failed_build_leaves_nothing(self, recipe, tmp_path, monkeypatch):
        from lissome.export import quantized

        def fail(source, folder, **_):
            (folder / "model.onnx").write_bytes(b"half of it")
            raise RuntimeError("no")

        monkeypatch.setattr(quantized, "onnx_int8_dynamic", fail)
        cache = Cache(tmp_path)
        whole = build_form(recipe, "onnxruntime", "fp32", cache)
        with pytest.raises(RuntimeError, match="no"):
            build_form(recipe, "onnxruntime", "int8-dynamic", cache)
        assert list((tmp_path / "forms").iterdir()) == [whole]

    def test_a_module_that_cannot_be_traced(self, tmp_path):
        from tests.export.test_program import Branching

        recipe = Recipe(as_model(Branching()), tiny.rows(2), [], "x")
        for engine in ("onnxruntime", "openvino", "torch"):
            with pytest.raises(BadModel, match=r"cannot be traced by torch\.export"):
                build_form(recipe, engine, "fp32", Cache(tmp_path))
        assert not list((tmp_path / "forms").iterdir())

    @pytest.mark.parametrize(("engine", "precision"), [("onnxruntime", "bf16"), ("openvino", "int8-dynamic"), ("torch", "int8-static"), ("tflite", "fp32")])
    def test_what_does_not_exist_is_refused_before_any_work(self, recipe, tmp_path, engine, precision):
        with pytest.raises(BadInput, match=f"there is no {precision} form for {engine}"):
            build_form(recipe, engine, precision, Cache(tmp_path))
        assert not list((tmp_path / "forms").iterdir())

    def test_table_is_of_real_engines(self):
        assert set(FORMS) == set(ENGINES)
        assert all(set(precisions) <= set(PRECISIONS) for precisions in FORMS.values())


class TestTorchForms:
    def test_files(self, forms):
        form = forms.form("bert", "torch", "fp32")
        assert {"architecture.json", "config.json", "model.safetensors", "form.json"} == {p.name for p in form.iterdir()}
        described = json.loads((form / "form.json").read_text())
        assert described == {"engine": "torch", "file": "model.safetensors", "inputs": ["input_ids", "attention_mask"], "dims": {}, "layers": {}}

    def test_size_is_of_what_runs(self, forms):
        form = forms.form("bert", "torch", "fp32")
        assert form_bytes(form) == sum((form / name).stat().st_size for name in ("model.safetensors", "config.json"))
        assert form_bytes(forms.form("bert", "torch", "bf16")) < 0.6 * form_bytes(form)

    def test_the_model_itself_is_left_in_float32(self, forms):
        forms.form("mlp", "torch", "bf16")
        assert forms["mlp"].recipe.model.module.head.weight.dtype is torch.float32

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_a_module_in_memory(self, tmp_path, precision):
        recipe = Recipe(as_model(tiny.mlp()), tiny.rows(2), [], "x")
        form = build_form(recipe, "torch", precision, Cache(tmp_path))
        assert {p.name for p in form.iterdir()} == {"model.pt2", "form.json"}
        for size in (1, 5):
            batch = tiny.rows(size, 3)
            with torch.no_grad():
                expected = recipe.model.module(torch.from_numpy(batch["features"])).numpy()
            assert relative_error(expected, load("torch", form, Load(precision, 1)).run(batch)) < (1e-6 if precision == "fp32" else 0.02)
