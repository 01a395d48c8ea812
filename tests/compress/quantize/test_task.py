"""`lissome quantize` and `lissome qat`, and what they leave on disk."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lissome.cli.main import run as command
from lissome.compress.quantize import QatTaskConfig, QuantizeConfig, load_quantized, save_quantized
from lissome.compress.quantize.task import calibration, original_of, qat_to, quantize_to, taught_loss
from lissome.core.cache import Cache
from lissome.core.quantization import LayerQuant
from lissome.engines.table import Load, load
from lissome.nn.load import load_model, save_model
from lissome.train.config import TrainConfig
from tests.compress.quantize.verbs import rows_task
from tests.nn import tiny

MODEL, TASK = "tests.nn.tiny:mlp", "tests.compress.quantize.verbs:rows_task"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(root, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(root))
    return Cache()


@pytest.fixture
def made(tmp_path, cache):
    return quantize_to(tmp_path / "out", MODEL, TASK, QuantizeConfig(smallest=1, layers={"head": LayerQuant(precision="bf16")}), cache)


def test_what_is_in_the_folder(made, tmp_path):
    out = tmp_path / "out"
    names = {p.name for p in out.iterdir()}
    assert {"architecture.json", "model.safetensors", "quantization.json", "scales.safetensors", "quantize.json", "onnx"} <= names
    assert {p.name for p in (out / "onnx").iterdir()} == {"model.onnx", "form.json"}
    assert made.precisions == {"first": "int8-static", "second": "int8-static", "head": "bf16"}
    assert made.mb_before > made.mb_after > 0
    assert made.parity < 0.02
    assert abs(made.after - made.before) < 0.1
    assert json.loads((out / "quantize.json").read_text())["after"] == made.after
    kept = load_quantized(out)
    expected = load("onnxruntime", out / "onnx", Load("mixed", 1)).run(tiny.rows(3))
    again = quantize_to(tmp_path / "again", MODEL, TASK, QuantizeConfig(smallest=1, layers={"head": LayerQuant(precision="bf16")}), Cache())
    assert dataclasses.replace(again, folder=made.folder) == made
    assert np.array_equal(load("onnxruntime", tmp_path / "again" / "onnx", Load("mixed", 1)).run(tiny.rows(3)), expected)
    save_quantized(kept, tmp_path / "copy")
    assert load_quantized(tmp_path / "copy").fingerprint == kept.fingerprint


def test_training_goes_on_from_the_folder(made, tmp_path, cache):
    config = QatTaskConfig(train=TrainConfig(epochs=2, lr=1e-2), size=16)
    trained = qat_to(tmp_path / "trained", str(tmp_path / "out"), TASK, config, cache=cache)
    assert trained.precisions == made.precisions
    assert trained.after > made.after + 0.2
    assert not (cache.root / "training").exists() or not any((cache.root / "training").iterdir()), "checkpoints are gone"
    direct = qat_to(tmp_path / "direct", MODEL, TASK, config, QuantizeConfig(smallest=1, precision="int8-dynamic"), cache)
    assert set(direct.precisions.values()) == {"int8-dynamic"}


@pytest.fixture(scope="module")
def shifted(tmp_path_factory, root):
    """A folder whose own weights are not the float model's any more."""
    out = tmp_path_factory.mktemp("shifted") / "out"
    return quantize_to(out, MODEL, TASK, QuantizeConfig(smallest=1, bias_correction=True), Cache(root))


def test_the_float_original_teaches_and_is_compared_with(shifted, tmp_path, monkeypatch, cache):
    from lissome.compress.quantize import task as room

    teachers, plain, original = [], room.qat_for_task, load_model(MODEL)
    monkeypatch.setattr(room, "qat_for_task", lambda taught, *rest: teachers.append(taught) or plain(taught, *rest))
    trained = qat_to(tmp_path / "trained", shifted.folder, TASK, QatTaskConfig(train=TrainConfig(steps=1)), cache=cache)
    assert load_quantized(Path(shifted.folder)).model.fingerprint != original.fingerprint
    assert [model.fingerprint for model in teachers] == [original.fingerprint]
    assert (trained.before, trained.notes) == (shifted.before, ())
    assert (trained.original, trained.original_fingerprint) == (MODEL, original.fingerprint)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"original_fingerprint": "0" * 16}, f"{MODEL} is another model now"),
        ({"original": "/gone"}, "there is no folder /gone"),
        ({"original": "user/name"}, "there is no folder user/name"),
        ({"original": "subprocess:getoutput"}, "it needs the code subprocess:getoutput, which was not named by you"),
        (None, "quantize.json does not name it"),
    ],
)
def test_an_original_that_is_not_to_be_had(shifted, tmp_path, changed, why):
    folder = tmp_path / "out"
    shutil.copytree(shifted.folder, folder)
    record = json.loads((folder / "quantize.json").read_text())
    (folder / "quantize.json").write_text("" if changed is None else json.dumps({**record, **changed}))
    kept = load_quantized(folder)
    found, notes = original_of(folder, kept)
    assert found is kept.model
    assert notes == (f"the float model that {folder} was made from is not to be had: {why}; the folder's own weights teach and are compared with",)


def test_an_original_in_a_folder_is_found_from_anywhere(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    save_model(load_model(MODEL), tmp_path / "float")
    made = quantize_to(tmp_path / "out", "float", TASK, QuantizeConfig(smallest=1, bias_correction=True), cache)
    monkeypatch.chdir("/")
    found, notes = original_of(tmp_path / "out", load_quantized(tmp_path / "out"))
    assert (found.fingerprint, found.ref, notes) == (made.original_fingerprint, str(tmp_path / "float"), ())


@pytest.mark.parametrize(("isa", "levels"), [(("AVX2",), 63), (("AVX2", "AVX512-VNNI"), 127), (("NEON",), 127)])
def test_seven_bits_where_eight_overflow(tmp_path, monkeypatch, cache, isa, levels):
    from lissome.compress.quantize import task as room

    monkeypatch.setattr(room, "identify", lambda: dataclasses.make_dataclass("Machine", ["isa"])(isa))
    monkeypatch.setattr(room, "write", lambda out, original, made, *_: made)
    made = quantize_to(tmp_path / "out", MODEL, None, QuantizeConfig(precision="int8-dynamic"), cache)
    assert {quant.levels[1] for quant in made.quantization.layers.values()} == {levels}


def test_calibration_is_a_fixed_draw():
    task = rows_task(300)
    first, second = calibration(task), calibration(task)
    assert sum(len(batch["labels"]) for batch in first) == 256
    assert all(torch.equal(a["features"], b["features"]) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_taught_loss(share):
    teacher, student = load_model(MODEL), tiny.mlp()
    with torch.no_grad():
        student.head.bias += torch.tensor([1.0, 0, 0, 0])
    batch = {**tiny.tensors(tiny.rows(6)), "labels": torch.arange(6) % 4}
    p, q = (torch.log_softmax(module(batch["features"]), -1) for module in (teacher.module, student))
    expected = (1 - share) * -q[torch.arange(6), batch["labels"]].mean() + share * (p.exp() * (p - q)).sum(-1).mean()
    assert float(taught_loss(teacher, share)(student, batch)) == pytest.approx(float(expected), rel=1e-4)


def test_the_article_s_line(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert command(["quantize", MODEL, "--task", TASK, "--precision", "int8", "--adaptive_layers", "--output", out, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert sorted(shown["precisions"].values()) == ["bf16", "int8-static"]
    assert len(shown["kept"]) == 1
    assert command(["qat", out, "--task", TASK, "--epochs", "0.2", "--out", str(tmp_path / "trained")]) == 0
    text = capsys.readouterr().out
    assert "Layers    1 bf16, 1 int8-static; all others float32" in text
    assert "Score" in text and "pt), validation split" in text and "Size" in text


def test_without_a_task(tmp_path, capsys):
    assert command(["quantize", MODEL, "--precision", "int8-static", "--out", str(tmp_path / "a")]) == 2
    shown = capsys.readouterr().err
    assert "int8-static needs calibration examples, and there are none" in shown
    assert "--task TASK" in shown
    assert command(["quantize", MODEL, "--precision", "w8a16", "--out", str(tmp_path / "a")]) == 0
    assert "no example of its inputs, so no ONNX form was written" in capsys.readouterr().out


def test_the_article_s_line_without_a_task(tmp_path, capsys):
    out = tmp_path / "out"
    assert command(f"quantize {MODEL} --precision int8 --adaptive-layers --output {out}".split()) == 0
    shown = capsys.readouterr().out
    assert "Layers    1 bf16, 1 int8-dynamic; all others float32" in shown
    assert "Note      int8-dynamic was taken for int8: int8-static needs calibration examples, which --task TASK gives" in shown
    assert "Note      there are no calibration examples, so layers were ranked by how much rounding changes their weights" in shown
    spared = next(line for line in shown.splitlines() if line.startswith("Spared"))
    assert spared.endswith(" of its weights)")
    assert sorted(quant.precision for quant in load_quantized(out).quantization.layers.values()) == ["bf16", "int8-dynamic"]


def test_layers_by_name_and_few_examples(tmp_path, capsys):
    out, few = str(tmp_path / "out"), "tests.compress.quantize.verbs:few"
    layers = ["--layer", "*=w4a16", "--layer", "first=int8-static", "--layer", "head=fp32"]
    assert command(["quantize", MODEL, "--task", few, "--least-examples", "5", *layers, "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precisions"] == {"first": "int8-static", "second": "w4a16"}
    assert load_quantized(tmp_path / "out").quantization.layers["second"] == LayerQuant(precision="w4a16", group=32)


@pytest.mark.slow
def test_a_transformers_model_says_what_its_inputs_look_like(tmp_path, capsys):
    bert = tiny.bert_folder(tmp_path / "bert", labels=3)
    assert command(["quantize", str(bert), "--precision", "int8-dynamic", "--out", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"] < 0.01
    assert (tmp_path / "b" / "onnx" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "tests.compress.quantize.verbs:few"], "only 5 calibration examples"),
        (["--task", "tests.compress.quantize.verbs:few"], "--least-examples"),
        (["--task", TASK, "--layer", "head"], '--layer: "head" does not say which layer is to be what.'),
        (["--task", TASK, "--layer", "head=int3"], "the precision one of fp32, bf16, int8-dynamic, int8-static, w8a16, w4a16"),
        (["--task", TASK, "--layer", "haed=fp32"], 'which no layer of the model is called. Did you mean "head"?'),
        (["--task", TASK, "--least-examples", "0"], "--least-examples: Input should be"),
        (["--task", TASK, "--spare", "2"], "--spare says how many layers --adaptive-layers leaves, which was not given"),
        (["--task", TASK, "--precision", "int3"], "--precision: Input should be"),
        (["--task", TASK, "--method", "guess"], "--method: Input should be"),
        (["--task", TASK, "--group", "33", "--precision", "w4a16"], "--group: Input should be"),
    ],
)
def test_bad_input(tmp_path, capsys, arguments, expected):
    assert command(["quantize", MODEL, "--out", str(tmp_path / "out"), *arguments]) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--precision", "w4a16"], ["--method", "minmax"]])
def test_a_quantised_folder_keeps_its_precisions(made, tmp_path, capsys, option):
    assert command(["qat", made.folder, "--task", TASK, *option, "--out", str(tmp_path / "trained")]) == 2
    shown = capsys.readouterr().err
    assert "the model is quantised already; training keeps its precisions" in shown
    assert "leave them out, or give the float model" in shown


def test_a_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    assert command(["quantize", MODEL, "--task", TASK, "--out", str(tmp_path / "out")]) == 2
    assert "holds something else" in capsys.readouterr().err
