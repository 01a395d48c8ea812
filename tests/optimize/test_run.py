"""The main job end to end on a small real problem. Contracts here limit size, memory and accuracy: a test never depends on a time."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lissome.cli.main import run as command
from lissome.core.contract import Contract
from lissome.core.errors import BadArtifact, BadInput, BadModel, BadTask, EnvironmentLacks
from lissome.core.manifest import read_manifest
from lissome.core.progress import Silent
from lissome.core.task import LANGUAGE
from lissome.data import load_task
from lissome.engines.artifact import open_artifact
from lissome.nn.load import load_model
from lissome.optimize import escalate
from lissome.optimize.recheck import verify
from lissome.optimize.run import optimize

MODEL = "tiny_model:build"
CONTRACT = Contract(max_drop="3%", size="2x")


def test_a_contract_is_met_and_leaves_an_artifact(met):
    assert met.verdict.status == "met"
    manifest = read_manifest(met.folder)
    assert manifest == met.manifest.model_copy(update={"files": manifest.files})
    assert manifest.plan.precision.startswith("int8")
    assert manifest.seen == 1
    assert {row.option.name for row in manifest.tried} >= {"torch fp32", "onnxruntime fp32", "onnxruntime int8-dynamic", "onnxruntime int8-static"}
    assert manifest.chosen.figure("memory").n == 3
    assert (met.folder / "model" / "model.safetensors").is_file()
    assert not [p for p in met.folder.rglob("*") if p.suffix in (".pt", ".pt2", ".bin", ".pkl")]


def test_the_artifact_predicts_as_it_was_judged(met, here):
    task = load_task(str(here / "task.yaml"))
    split = task.splits["test"]
    outputs = open_artifact(met.folder)(split.inputs)
    kept = np.load(met.folder / "evidence.npz", allow_pickle=False)
    np.testing.assert_array_equal(task.score(outputs, split.targets), kept["chosen"])
    assert kept["chosen"].mean() == pytest.approx(met.manifest.chosen_score.value / 100)


def test_the_original_weights_are_in_the_artifact_unchanged(met, here):
    assert load_model(str(met.folder)).fingerprint == met.manifest.model.fingerprint


def test_verify_says_whether_it_still_holds(met, here):
    found = verify(met.folder)
    assert found.same_machine
    assert [clause.status for clause in found.verdict.clauses] == ["met", "met"]


def test_a_changed_file_is_noticed(met, here, tmp_path):
    folder = Path(shutil.copytree(met.folder, tmp_path / "copy"))
    with (folder / "engine" / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BadArtifact, match=r"engine/model\.onnx was changed after the artifact was written"):
        open_artifact(folder)
    with pytest.raises(BadArtifact, match="was changed"):
        verify(folder)
    (folder / "engine" / "model.onnx").unlink()
    with pytest.raises(BadArtifact, match=r"the file engine/model\.onnx is missing"):
        open_artifact(folder)


def test_the_same_question_twice_gives_the_same_choice_from_the_cache(met, here, tmp_path):
    again = optimize(MODEL, str(here / "task.yaml"), CONTRACT, out=tmp_path / "again")
    assert again.manifest.plan == met.manifest.plan
    assert again.manifest.drop == met.manifest.drop
    assert again.manifest.seen == met.manifest.seen


def test_a_later_contract_with_the_same_choice_measures_nothing_again_for_an_hour(met, here, tmp_path, monkeypatch):
    from lissome.optimize import tables
    from lissome.optimize import verify as verdicts

    measured = []
    real = tables.measure
    monkeypatch.setattr(tables, "measure", lambda subjects, *rest, **named: measured.append(len(subjects)) or real(subjects, *rest, **named))
    looser = Contract(max_drop="4%", size="1.9x")
    result = optimize(MODEL, str(here / "task.yaml"), looser, out=tmp_path / "looser")
    assert (result.manifest.plan, measured) == (met.manifest.plan, [])
    assert verify(result.folder).verdict.status == "met"
    assert measured[0] == 2
    measured.clear()
    monkeypatch.setattr(verdicts, "RECENT_S", -60.0)
    optimize(MODEL, str(here / "task.yaml"), looser, out=tmp_path / "later")
    assert measured[0] == 2


def test_infeasible_names_what_limits_and_the_nearest_command_is_met(here, capsys):
    arguments = ["optimize", MODEL, "--task", str(here / "task.yaml"), "--max-drop", "3%", "--size", "1kB", "--json"]
    assert command(arguments) == 3
    document = json.loads(capsys.readouterr().out)
    verdict = document["verdict"]
    assert verdict["status"] == "infeasible"
    assert document["artifact"] is None
    assert "size <= 0.001 MB" in verdict["summary"]
    assert Path(document["report"]).is_file()
    assert command([*shlex.split(verdict["nearest"])[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"]["status"] == "met"


def test_the_command_prints_a_verdict_and_writes_the_report(here, capsys):
    assert command(["optimize", MODEL, "--task", str(here / "task.yaml"), "--size", "2x"]) == 0
    shown = capsys.readouterr()
    assert "MET" in shown.out
    assert "report.html" in shown.out
    folder = Path(shown.out.split("Artifact")[1].split()[0])
    assert "<html" in (folder / "report.html").read_text()
    assert command(["run", str(folder), "--input", "1,1,0,0,0,0", "--input", "-1,-1,0,0,0,0"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["right", "left"]
    assert command(["run", str(folder), "--input", "1,2"]) == 2
    assert "the row has 2 cells, the task 6 columns" in capsys.readouterr().err


def test_a_model_in_memory_can_be_optimised_but_not_as_torch(here, tmp_path):
    sys.modules.pop("tiny_model", None)
    import tiny_model

    result = optimize(tiny_model.build(), str(here / "task.yaml"), CONTRACT, out=tmp_path / "artifact")
    assert result.verdict.status == "met"
    assert not (result.folder / "model").exists()
    assert not list(result.folder.rglob("*.pt2"))
    with pytest.raises(BadArtifact, match="from a module in memory"):
        verify(result.folder)


def test_a_model_in_memory_never_ends_as_a_pickle(here, tmp_path):
    """Without a limit that int8 wins, torch's own form must still not be the choice: its file would be a pickle."""
    sys.modules.pop("tiny_model", None)
    import tiny_model

    result = optimize(tiny_model.build(), str(here / "task.yaml"), Contract(latency="p50 10s"), out=tmp_path / "artifact")
    assert result.manifest.plan.engine == "onnxruntime"
    with pytest.raises(BadModel, match=r"cannot be traced by torch\.export"):
        optimize(tiny_model.conditional(), str(here / "task.yaml"), Contract(latency="p50 10s"), out=tmp_path / "other")


def test_a_model_that_does_not_trace_still_runs_on_torch(here, tmp_path):
    result = optimize("tiny_model:conditional", str(here / "task.yaml"), Contract(max_drop="3%"), out=tmp_path / "artifact")
    assert result.verdict.status == "met"
    assert result.manifest.plan.engine == "torch"
    failed = [row for row in result.manifest.tried if row.outcome == "failed"]
    assert failed
    assert all("cannot be traced by torch.export" in row.why for row in failed)


def test_a_form_that_computes_something_else_is_dropped_and_its_layer_named(here, tmp_path, monkeypatch):
    """A quantiser that ruins one layer: the parity gate must stop it, whatever its speed and size."""
    from lissome.export import quantized

    real = quantized.onnx_int8_dynamic

    def ruined(source, folder, *, reduce_range):
        import onnx
        from onnx import numpy_helper

        real(source, folder, reduce_range=reduce_range)
        model = onnx.load(str(source / "model.onnx"))
        middle = next(t for t in model.graph.initializer if list(t.dims) == [160, 160])
        middle.CopyFrom(numpy_helper.from_array(-10 * numpy_helper.to_array(middle), middle.name))
        onnx.save(model, str(folder / "model.onnx"))

    monkeypatch.setattr(quantized, "onnx_int8_dynamic", ruined)
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "own-cache"))
    result = optimize(MODEL, str(here / "task.yaml"), Contract(max_drop="3%"), out=tmp_path / "artifact")
    row = next(row for row in result.manifest.tried if row.option.precision == "int8-dynamic")
    assert row.outcome == "failed"
    assert "the first layer to depart is 2" in row.why


def test_an_engine_that_dies_loses_only_its_own_rows(here, tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "own-cache"))
    from lissome.export import quantized

    def empty(source, folder, *, reduce_range):
        (folder / "model.onnx").write_bytes(b"not a model")
        (folder / "form.json").write_text((source / "form.json").read_text())

    monkeypatch.setattr(quantized, "onnx_int8_dynamic", empty)
    result = optimize(MODEL, str(here / "task.yaml"), Contract(max_drop="3%"), out=tmp_path / "artifact")
    rows = {row.option.precision: row for row in result.manifest.tried if row.option.engine == "onnxruntime"}
    assert rows["int8-dynamic"].outcome == "failed"
    assert "the engine failed" in rows["int8-dynamic"].why
    assert rows["fp32"].outcome in ("chosen", "dominated")


def test_spend_skips_what_no_longer_fits_and_still_gives_a_verdict(here, tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "own-cache"))
    result = optimize(MODEL, str(here / "task.yaml"), Contract(max_drop="3%", spend="0.001s"), out=tmp_path / "artifact")
    assert result.verdict.status == "met"
    assert any("--spend" in row.why for row in result.manifest.tried if row.outcome == "skipped")


def test_only_what_may_be_chosen_is_scored_on_everything(here, tmp_path, monkeypatch):
    from lissome.optimize import tables

    monkeypatch.setattr(tables, "SCREENED", 200)
    result = optimize(MODEL, str(here / "task.yaml"), CONTRACT, out=tmp_path / "artifact")
    assert result.verdict.status == "met"
    counts = {row.option.name: row.drop.n for row in result.manifest.tried if row.drop}
    assert counts[result.manifest.plan.name] == 600
    assert 200 in counts.values()


def test_ram_measures_in_several_runs(met, here, tmp_path, monkeypatch):
    """Every way still gets its figures when only a few processes fit side by side."""
    from lissome.optimize import tables

    others = max(row.figure("memory").value for row in met.manifest.tried if row.option.engine == "onnxruntime" and row.figure("memory"))
    room = met.manifest.original.figure("memory").value + 1.5 * others
    monkeypatch.setattr(tables, "free_ram", lambda bench: room)
    result = optimize(MODEL, str(here / "task.yaml"), Contract(max_drop="3%", ram="20GB"), out=tmp_path / "artifact")
    assert all(row.figures for row in result.manifest.tried if row.option.engine == "onnxruntime" and row.outcome != "skipped")


def test_killed_while_building_it_goes_on_where_it_was(here, tmp_path):
    """kill -9 once the first forms are on disk; the next run must use them, and end as if nothing had happened."""
    cache = tmp_path / "own-cache"
    environment = {**os.environ, "LISSOME_CACHE": str(cache), "PYTHONPATH": os.pathsep.join([str(here), *sys.path]), "OMP_NUM_THREADS": "1"}
    script = "from lissome.cli.main import run; import sys; sys.exit(run(sys.argv[1:]))"
    arguments = [sys.executable, "-c", script, "optimize", MODEL, "--task", str(here / "task.yaml"), "--size", "2x", "--out", str(tmp_path / "artifact")]
    process = subprocess.Popen(arguments, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(cache.glob("forms/[!.]*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {form: form.stat().st_mtime_ns for form in cache.glob("forms/[!.]*")}
    assert before
    assert not (tmp_path / "artifact").exists()
    os.environ["LISSOME_CACHE"], kept = str(cache), os.environ["LISSOME_CACHE"]
    try:
        result = optimize(MODEL, str(here / "task.yaml"), Contract(size="2x"), out=tmp_path / "artifact")
    finally:
        os.environ["LISSOME_CACHE"] = kept
    assert result.verdict.status == "met"
    assert {form: form.stat().st_mtime_ns for form in before} == before, "finished forms are not built again"


def test_refusals_before_any_work(here, tmp_path):
    task = str(here / "task.yaml")
    with pytest.raises(BadTask, match=r"the labels do not fit the model's head: the model gives 3 outputs, the task has 2 classes \(left, right\)"):
        optimize("tiny_model:three", task, CONTRACT)
    with pytest.raises(BadModel, match=r"NaN or infinity: 1 of 25600 values in 2\.weight"):
        optimize("tiny_model:broken", task, CONTRACT)
    with pytest.raises(BadModel, match="the model cannot run the task's examples"):
        optimize("lissome.nn.cnn:small_cnn", task, CONTRACT)
    words = dataclasses.replace(load_task(task), kind=LANGUAGE)
    with pytest.raises(BadTask, match=r"(?s)a language model's are as many as its tokens times its words.*lissome pack"):
        optimize(MODEL, words, CONTRACT)
    assert not (tmp_path / "runs").exists()


def test_an_energy_limit_without_a_counter_is_refused_before_any_work(here, monkeypatch):
    monkeypatch.setattr("lissome.optimize.run.fine_meter", lambda: None)
    with pytest.raises(EnvironmentLacks, match="an energy limit cannot be certified here"):
        optimize(MODEL, str(here / "task.yaml"), Contract(energy="5mJ"))


def test_a_test_split_too_small_for_the_limit_is_told_first_and_judged_all_the_same(here, tmp_path, monkeypatch):
    """Only a model that gains could pass, and nothing here is trained."""
    monkeypatch.setattr(escalate, "RUNGS", ())
    lines: list[str] = []
    heard = Silent()
    heard.say = lines.append  # type: ignore[method-assign]
    result = optimize(MODEL, str(here / "task.yaml"), Contract(max_drop="0.1%", size="1x"), out=tmp_path / "artifact", progress=heard)
    assert any("The test split is small for this limit: with 1,200 examples" in line for line in lines)
    assert result.verdict.status != "met" or result.manifest.chosen_score.value > result.manifest.original_score.value


def test_an_out_folder_with_other_things_in_it_is_left_alone(here, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(BadInput, match="is not a lissome artifact, so it is not overwritten"):
        optimize(MODEL, str(here / "task.yaml"), CONTRACT, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
