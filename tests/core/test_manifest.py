from __future__ import annotations

import json
from pathlib import Path

import pytest

from lissome.core.contract import Clause, Contract, Verdict
from lissome.core.errors import BadArtifact, EnvironmentLacks
from lissome.core.manifest import MachineInfo, Manifest, ModelInfo, Option, TaskInfo, Tried, read_manifest, write_manifest
from lissome.core.measurement import Measurement
from lissome.core.model import Architecture


@pytest.fixture
def manifest() -> Manifest:
    latency = Measurement("latency_p50", 7.47, 7.4, 7.5, "ms", 30, "measured", "box")
    faster = Measurement("latency_p50", 1.06, 1.04, 1.09, "ms", 30, "measured", "box")
    drop = Measurement("max_drop", 0.3, -0.2, 0.8, "pt", 5840, "measured", "box")
    plain, chosen = Option(engine="torch", precision="fp32"), Option(engine="openvino", precision="int8-static", padding="multiple-of-16")
    clause = Clause(limit="latency p50 <= 3 ms", status="met", figure=faster, original=latency, sentence="MET")
    return Manifest(
        created="2025-01-01T00:00:00Z",
        lissome="0.1.0",
        model=ModelInfo(ref="dir", fingerprint="f", architecture=Architecture(kind="factory", target="a.b:c", config={"width": 8})),
        task=TaskInfo(ref="task.yaml", name="sentiment", kind="text", fingerprint="t", sizes={"test": 5840}, classes=("neg", "pos")),
        contract=Contract(max_drop="1%", latency="3ms"),
        verdict=Verdict(status="met", clauses=(clause,), summary="met"),
        plan=chosen,
        machine=MachineInfo(fingerprint="box", cpu="cpu", cores=2, ram_mb=8000, isa=("avx2",)),
        drop=drop,
        tried=(
            Tried(option=plain, outcome="original", why="", figures=(latency,)),
            Tried(option=chosen, outcome="chosen", why="fastest", drop=drop, figures=(faster,), on_front=True),
        ),
        versions={"torch": "2"},
        replay="lissome optimize dir --task task.yaml",
        files={"weights.safetensors": "0" * 64},
    )


def test_round_trip(manifest, tmp_path):
    path = write_manifest(manifest, tmp_path)
    assert path == tmp_path / "manifest.json"
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]
    assert read_manifest(tmp_path) == manifest
    assert json.loads(path.read_text())["schema_version"] == 1


def test_rows_by_role(manifest):
    assert manifest.original.option.engine == "torch"
    assert manifest.chosen.option == manifest.plan
    assert manifest.chosen.figure("latency_p50").value == 1.06
    assert manifest.chosen.figure("energy") is None
    assert manifest.plan.name == "openvino int8-static, padded to 16"


def test_a_folder_without_a_manifest(tmp_path):
    with pytest.raises(BadArtifact, match=r"no manifest\.json") as caught:
        read_manifest(tmp_path)
    assert "lissome optimize" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{half", b"\xff\xfe", b"\x80abc"])
def test_a_broken_manifest(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BadArtifact, match=r"manifest\.json cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(("content", "version"), [({"schema_version": 99}, "99"), ({}, "None"), ([], "None"), (None, "None")])
def test_a_manifest_of_another_schema(tmp_path, content, version):
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BadArtifact, match=f"schema version {version}; this lissome reads version 1"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda data: data.pop("plan"), "plan"),
        (lambda data: data.update(surprise=1), "surprise"),
        (lambda data: data["plan"].update(precision="fp7"), "plan.precision"),
        (lambda data: data["contract"].update(latency="0ms"), "contract.latency"),
        (lambda data: data["tried"][0]["figures"][0].update(value="fast"), "tried.0.figures.0"),
    ],
)
def test_a_manifest_that_does_not_fit_names_the_place(manifest, tmp_path, change, where):
    path = write_manifest(manifest, tmp_path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(BadArtifact, match=f"does not fit its schema at {where}") as caught:
        read_manifest(tmp_path)
    assert str(path) in str(caught.value)


def test_a_full_disk_keeps_the_old_manifest(manifest, tmp_path, monkeypatch):
    write_manifest(manifest, tmp_path)
    real = Path.write_text

    def full(self, *args, **kwargs):
        real(self, "{half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(EnvironmentLacks, match=r"no disk space left while writing manifest\.json"):
            write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_an_unbounded_interval_survives(manifest, tmp_path):
    """JSON has no infinity; an interval without an upper end must not make the artifact unreadable."""
    open_ended = Measurement("max_drop", 0.3, -0.2, float("inf"), "pt", 3, "measured", "box")
    changed = manifest.model_copy(update={"drop": open_ended})
    path = write_manifest(changed, tmp_path)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read_manifest(tmp_path) == changed
