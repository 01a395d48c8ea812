from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest

from lissome.core.cache import file_sha256
from lissome.core.contract import Contract, Verdict
from lissome.core.errors import BadArtifact, BadInput, EnvironmentLacks, MissingExtra
from lissome.core.manifest import MachineInfo, Manifest, ModelInfo, Option, TaskInfo, Tried, read_manifest, write_manifest
from lissome.engines.artifact import check_files, open_artifact
from tests.nn import tiny

COLUMNS = [f"c{i}" for i in range(24)]
CLASSES = ("north", "east", "south", "west")


@pytest.fixture(scope="module")
def made(forms, tmp_path_factory):
    """An artifact by hand: the tiny network on ONNX Runtime, in batches of four."""
    folder = tmp_path_factory.mktemp("artifacts") / "whole"
    return make(folder, forms, "longest", None)


def make(folder, forms, padding, shapes, engine="onnxruntime"):
    shutil.copytree(forms.form("mlp", engine, "fp32"), folder / "engine")
    form = json.loads((folder / "engine/form.json").read_text())
    (folder / "engine/form.json").write_text(json.dumps({**form, "shapes": shapes}))
    (folder / "inputs").mkdir()
    kept = {"kind": "tabular", "columns": COLUMNS, "numeric": {name: [0.0, 1.0] for name in COLUMNS}, "categorical": {}, "input": "features"}
    (folder / "inputs/inputs.json").write_text(json.dumps({**kept, "classes": CLASSES}))
    model, plan = forms["mlp"].recipe.model, Option(engine=engine, precision="fp32", padding=padding)
    manifest = Manifest(
        created="2026-01-01",
        lissome="0",
        model=ModelInfo(ref="x", fingerprint=model.fingerprint, architecture=model.architecture, inputs=("features",)),
        task=TaskInfo(ref="x", name="x", kind="tabular", fingerprint="x", sizes={}, classes=CLASSES),
        contract=Contract(max_drop="1%", batch=4),
        verdict=Verdict(status="met", clauses=(), summary="met"),
        plan=plan,
        machine=MachineInfo(fingerprint="x", cpu="x", cores=1, ram_mb=1, isa=()),
        tried=(Tried(option=plan, outcome="chosen", why="it is the only one"),),
        versions={},
        replay="x",
    )
    files = {p.relative_to(folder).as_posix(): file_sha256(p) for p in folder.rglob("*") if p.is_file()}
    write_manifest(manifest.model_copy(update={"files": files}), folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(made, tmp_path / "artifact")


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_any_number_of_inputs(made, forms, count):
    rows = tiny.rows(count, 3)["features"]
    found = open_artifact(made, threads=1)(list(rows))
    assert found.shape == (count, 4)
    assert np.allclose(found, forms["mlp"].reference({"features": rows}), atol=1e-5)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_fixed_shapes_are_filled_up(forms, tmp_path, engine):
    folder = make(tmp_path / "fixed", forms, "fixed", {"features": [4, 24]}, engine)
    artifact = open_artifact(folder, threads=1)
    for count in (1, 4, 6):
        rows = tiny.rows(count, 3)["features"]
        assert np.allclose(artifact(list(rows)), forms["mlp"].reference({"features": rows}), atol=1e-5)


def test_a_batch_of_arrays_goes_straight_in(made, forms):
    batch = tiny.rows(6, 1)
    artifact = open_artifact(made, threads=1)
    assert np.allclose(artifact(batch), forms["mlp"].reference(batch), atol=1e-5)
    with pytest.raises(BadInput, match="the input 'features' is missing"):
        artifact({"pixels": batch["features"]})


def test_predictions(made, forms):
    rows = tiny.rows(5, 3)["features"]
    expected = forms["mlp"].reference({"features": rows})
    found = open_artifact(made, threads=1).predict([",".join(map(str, row.tolist())) for row in rows])
    assert [one["label"] for one in found] == [CLASSES[i] for i in expected.argmax(axis=1)]
    shares = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    assert [one["probability"] for one in found] == pytest.approx(shares.max(axis=1), abs=1e-4)


@pytest.mark.parametrize("raw", [[], "one text", ()])
def test_no_inputs(made, raw):
    with pytest.raises(BadInput, match="give a list of inputs, at least one"):
        open_artifact(made, threads=1)(raw)


def test_a_missing_file(folder):
    (folder / "engine/model.onnx").unlink()
    with pytest.raises(BadArtifact) as error:
        open_artifact(folder)
    assert str(error.value).startswith(f"{folder}: the file engine/model.onnx is missing.")
    assert "copy the whole artifact" in str(error.value)


@pytest.mark.parametrize("name", ["engine/model.onnx", "engine/form.json", "inputs/inputs.json"])
def test_a_changed_file(folder, name):
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(BadArtifact, match=f"the file {name} was changed after the artifact was written"):
        open_artifact(folder)


def test_files_beside_it_do_not_matter(folder):
    (folder / "report.html").write_text("<p>looked at")
    manifest = open_artifact(folder, threads=1).manifest
    check_files(folder, manifest)


def test_no_artifact(tmp_path):
    with pytest.raises(BadArtifact, match=r"it has no manifest\.json"):
        open_artifact(tmp_path)


def test_on_a_machine_without_its_engine(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra) as error:
        open_artifact(folder)
    assert 'pip install "lissome[onnx]"' in str(error.value)


def listed(folder, **changes):
    """Write the manifest of a spoilt artifact again as its maker would: with changed fields, and right hashes of all files."""
    files = {p.relative_to(folder).as_posix(): file_sha256(p) for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"}
    manifest = read_manifest(folder).model_copy(update={"files": files, **changes})
    write_manifest(manifest, folder)
    return manifest


@pytest.mark.parametrize("name", ["engine/extra.bin", "inputs/added/tokenizer.json", "model/architecture.json"])
def test_a_file_that_the_manifest_does_not_list(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")
    with pytest.raises(BadArtifact) as error:
        open_artifact(folder)
    assert str(error.value).startswith(f"{folder}: the file {name} was added after the artifact was written.")
    assert "remove it" in str(error.value)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "engine/../../outside.txt"])
def test_a_manifest_that_lists_what_lies_elsewhere(folder, name):
    (folder.parent / "outside.txt").write_text("private")
    manifest = read_manifest(folder)
    write_manifest(manifest.model_copy(update={"files": {**manifest.files, name: "0" * 64}}), folder)
    with pytest.raises(BadArtifact) as error:
        open_artifact(folder)
    assert f"{folder}: its manifest lists {name}, which lies outside the artifact" in str(error.value)


def test_a_link_to_what_lies_elsewhere(folder):
    (folder.parent / "outside.txt").write_text("private")
    (folder / "engine/link.txt").symlink_to(folder.parent / "outside.txt")
    listed(folder)
    with pytest.raises(BadArtifact, match=r"lists engine/link\.txt, which lies outside the artifact"):
        open_artifact(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"file": "../model.onnx"}, "names a file outside its own folder"), ({"file": "model.pt2"}, "in torch's own format, which can run code when it is read")],
)
def test_a_form_that_must_not_be_loaded(folder, changes, message):
    path = folder / "engine/form.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    listed(folder)
    with pytest.raises(BadArtifact, match=message):
        open_artifact(folder)


def test_code_that_a_form_names_is_not_run(folder, monkeypatch):
    ran = folder.parent / "ran"
    architecture = {"kind": "factory", "target": "subprocess:getoutput", "config": {"cmd": f"touch {ran}"}}
    (folder / "engine/architecture.json").write_text(json.dumps(architecture))
    listed(folder, plan=Option(engine="torch", precision="fp32"))
    with pytest.raises(BadArtifact) as error:
        open_artifact(folder)
    assert "it needs the code subprocess:getoutput, which was not named by you" in str(error.value)
    assert "LISSOME_TRUST=subprocess:getoutput lissome" in str(error.value)
    assert not ran.exists()


def test_on_a_machine_that_lacks_the_precision(folder, monkeypatch):
    monkeypatch.setattr("lissome.engines.torch_eager.has_bf16", lambda isa: False)
    listed(folder, plan=Option(engine="torch", precision="bf16"))
    with pytest.raises(EnvironmentLacks) as error:
        open_artifact(folder)
    assert "the artifact's torch bf16 cannot run here: this CPU has no bf16 instructions; torch would emulate them" in str(error.value)
    assert "optimize again on this machine" in str(error.value)


def test_an_engine_that_this_lissome_does_not_know(folder):
    listed(folder, plan=Option(engine="tvm", precision="fp32"))
    with pytest.raises(BadArtifact, match="this lissome knows no engine 'tvm'"):
        open_artifact(folder)
