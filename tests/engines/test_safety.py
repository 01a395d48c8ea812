from __future__ import annotations

import json

import pytest

from lissome.core import trust
from lissome.core.errors import BadArtifact
from lissome.engines.process import Process
from lissome.engines.safety import VOUCHED, check_form
from lissome.engines.table import Load, load


def form(folder, file="model.safetensors", target=None):
    folder.mkdir(parents=True)
    (folder / "form.json").write_text(json.dumps({"engine": "torch", "file": file, "inputs": ["features"], "dims": {}, "layers": {}}))
    if target:
        (folder / "architecture.json").write_text(json.dumps({"kind": "factory", "target": target, "config": {"cmd": f"touch {folder / 'ran'}"}}))
    return folder


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch):
    monkeypatch.setattr(trust, "_named", set())
    monkeypatch.delenv("LISSOME_TRUST", raising=False)


def refused(path):
    with pytest.raises(BadArtifact) as error:
        check_form(path)
    return str(error.value)


@pytest.mark.parametrize("engine", ["torch", "torch.compile"])
def test_a_form_that_names_code_does_not_run_it(tmp_path, engine):
    folder = form(tmp_path / "engine", target="subprocess:getoutput")
    message = r"architecture\.json: it needs the code subprocess:getoutput, which was not named by you"
    with pytest.raises(BadArtifact, match=message):
        load(engine, folder, Load("fp32", 1))
    with Process(1) as process, pytest.raises(BadArtifact, match=message):
        process.load(engine, folder, "fp32", tmp_path / "none.npz", None)
    assert not (folder / "ran").exists()


def test_named_code_may_run(tmp_path, monkeypatch):
    folder = form(tmp_path / "engine", target="my.own:build")
    monkeypatch.setenv("LISSOME_TRUST", "my.own:build")
    check_form(folder)


def test_torchs_own_format_is_refused_unless_it_lies_in_a_cache(tmp_path):
    message = refused(form(tmp_path / "engine", "model.pt2"))
    assert "model.pt2 is in torch's own format, which can run code when it is read" in message
    assert "optimize again from a factory" in message
    refused(form(tmp_path / "forms" / "0123456789abcdeg", "model.pt2"))
    refused(form(tmp_path / "forms" / "0123456789abcdef" / "engine", "model.pt2"))
    check_form(form(tmp_path / "cache" / "forms" / "0123456789abcdef", "model.pt2"))


@pytest.mark.parametrize("file", ["../model.onnx", "/etc/passwd", "a/../../x", 3, None])
def test_a_file_outside_the_form(tmp_path, file):
    assert "form.json names a file outside its own folder" in refused(form(tmp_path / "engine", file))


@pytest.mark.parametrize(("content", "message"), [("{", "it cannot be read"), ("[]", "it holds no keys and values")])
def test_a_broken_description(tmp_path, content, message):
    folder = form(tmp_path / "engine")
    (folder / "form.json").write_text(content)
    assert message in refused(folder)


def test_a_measured_process_relies_on_its_parent(tmp_path, monkeypatch):
    monkeypatch.setenv(VOUCHED, "1")
    check_form(form(tmp_path / "engine", target="my.own:build"))
