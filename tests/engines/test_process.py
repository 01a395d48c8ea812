from __future__ import annotations

import errno
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lissome.core.errors import EnvironmentLacks
from lissome.engines import process as room
from lissome.engines.process import EngineFailed, Process, write_batches
from tests.engines import rogue
from tests.nn import tiny


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    return write_batches([tiny.rows(3, 1), tiny.rows(3, 2)], tmp_path_factory.mktemp("batches") / "b.npz")


@pytest.fixture(scope="module")
def ort(forms, batches):
    with Process(1) as process:
        process.load("onnxruntime", forms.form("mlp", "onnxruntime", "fp32"), "fp32", batches, None)
        yield process


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether a process ends within that time; a zombie that waits for its parent has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def refusal(process, *request, **options):
    with pytest.raises(EngineFailed) as error:
        process.ask(*request, **options)
    return error.value.what


def loading(name, tmp_path, batches):
    """A process, and what it says when it loads a rogue form."""
    process = Process(1)
    with pytest.raises(EngineFailed) as error:
        process.load("torch", rogue.form(tmp_path / name, name), "fp32", batches, None)
    return process, error.value.what


class TestRequests:
    def test_outputs(self, ort, forms, batches, tmp_path):
        ort.ask("outputs", batches=str(batches), to=str(tmp_path / "o.npy"))
        expected = np.concatenate([forms["mlp"].reference(tiny.rows(3, seed)) for seed in (1, 2)])
        assert np.allclose(np.load(tmp_path / "o.npy"), expected, atol=1e-5)

    def test_load_says_what_runs(self, ort, forms, batches):
        answer = ort.load("onnxruntime", forms.form("mlp", "onnxruntime", "int8-dynamic"), "int8-dynamic", batches, {"features": (3, 24)})
        assert answer["describe"]["precision"] == "int8-dynamic"
        assert answer["load_s"] > 0
        assert answer["first_s"] > 0
        assert ort.cold_start_s > answer["load_s"] + answer["first_s"]

    def test_layers(self, ort, forms, batches, tmp_path):
        ort.load("onnxruntime", forms.form("mlp", "onnxruntime", "fp32"), "fp32", batches, None, probes=True)
        assert "second" in ort.ask("layers", to=str(tmp_path / "l.npz"))["names"]
        ort.load("onnxruntime", forms.form("mlp", "onnxruntime", "fp32"), "fp32", batches, None)

    def test_memory(self, ort):
        assert 10 < ort.peak_mb("here") < 2000

    def test_errors_are_the_engines_own_and_it_goes_on(self, ort, forms, batches, tmp_path):
        assert refusal(ort, "dance") == "KeyError: 'dance'"
        with pytest.raises(EngineFailed, match=r"No such file.*form\.json"):
            ort.load("onnxruntime", tmp_path / "nowhere", "fp32", batches, None)
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "form.json").write_text('{"file": "model.onnx"}')
        (broken / "model.onnx").write_bytes(b"not a model")
        with pytest.raises(EngineFailed, match=r"InvalidProtobuf.*model\.onnx"):
            ort.load("onnxruntime", broken, "fp32", batches, None)
        with pytest.raises(EngineFailed, match="KeyError: 'tflite'"):
            ort.load("tflite", broken, "fp32", batches, None)
        other = write_batches([tiny.images(2)], tmp_path / "images.npz")
        with pytest.raises(EngineFailed, match="features"):
            ort.load("onnxruntime", forms.form("mlp", "onnxruntime", "fp32"), "fp32", other, None)
        ort.load("onnxruntime", forms.form("mlp", "onnxruntime", "fp32"), "fp32", batches, None)
        assert len(ort.ask("time", seconds=0, skip=0)["ms"]) == 2

    @pytest.mark.parametrize("line", ["Welcome to the site!\n", '{"ms": [1.0, 2.'])
    def test_no_proper_answer(self, monkeypatch, line):
        with Process(1) as process:
            process.process.stdout.close()
            monkeypatch.setattr(process.process, "stdout", io.StringIO(line))
            assert "gave no proper answer to `warm`: " + repr(line.strip()) == refusal(process, "warm", to="").removeprefix("the engine's process ")

    def test_no_disk_space(self, ort, batches, tmp_path):
        (tmp_path / "o.npy").symlink_to("/dev/full")
        with pytest.raises(EnvironmentLacks, match="no disk space left while the engine ran") as error:
            ort.ask("outputs", batches=str(batches), to=str(tmp_path / "o.npy"))
        assert "lissome cache clear" in str(error.value)

    def test_no_disk_space_for_the_batches(self, monkeypatch, tmp_path):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(np, "savez", full)
        with pytest.raises(EnvironmentLacks, match="no disk space left while writing batches"):
            write_batches([tiny.rows(1)], tmp_path / "b.npz")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_process_holds_its_engine_and_not_torch(forms, batches, name):
    with Process(1) as process:
        process.load(name, forms.form("mlp", name, "fp32"), "fp32", batches, None)
        process.ask("time", seconds=0, skip=0)
        held = Path(f"/proc/{process.process.pid}/maps").read_text()
    assert name in held
    for other in ("libtorch", "transformers", "tokenizers", "pydantic_core", *({"onnxruntime", "openvino"} - {name})):
        assert other not in held


class TestEnds:
    def test_nothing_is_left_after_a_with_block(self):
        with Process(1) as process:
            pid = process.process.pid
        assert process.process.returncode == 0
        assert gone(pid, 0.5)
        process.close()

    def test_nothing_is_left_after_an_exception(self):
        with pytest.raises(ZeroDivisionError), Process(1) as process:
            raise ZeroDivisionError
        assert process.process.returncode is not None

    def test_a_process_that_dies(self, tmp_path, batches):
        process, said = loading("dies", tmp_path, batches)
        assert said == "the engine's process died during `load`: last words (exit code 7)"
        assert "the engine's process died during `warm`" in refusal(process, "warm", to="")
        process.close()

    def test_a_process_that_is_killed(self, tmp_path, batches):
        process, said = loading("killed", tmp_path, batches)
        assert "ended by SIGKILL, usually for lack of memory" in said
        process.close()

    def test_a_process_that_no_longer_answers(self, tmp_path, batches, monkeypatch):
        monkeypatch.setattr(room, "GRACE_S", 0.2)
        process, said = loading("closes_its_end", tmp_path, batches)
        assert "died during `load`" in said
        assert gone(process.process.pid, 1)
        process.close()

    def test_a_busy_process_is_ended_with_what_it_started(self, tmp_path, batches, monkeypatch):
        monkeypatch.setattr(room, "GRACE_S", 0.2)
        monkeypatch.setenv("ROGUE_CHILD", str(tmp_path / "child"))
        process = Process(1)
        request = {"do": "load", "engine": "torch", "form": str(rogue.form(tmp_path / "stuck", "stuck")), "precision": "fp32", "threads": 1}
        process.process.stdin.write(json.dumps({**request, "batches": str(batches)}) + "\n")
        process.process.stdin.flush()
        end = time.monotonic() + 60
        while not (tmp_path / "child").exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.1)
        child = int((tmp_path / "child").read_text())
        assert not gone(child, 0.1)
        process.close()
        assert process.process.returncode == -signal.SIGKILL
        assert gone(child, 5)

    def test_it_ends_when_its_parent_is_killed(self):
        code = "from lissome.engines.process import Process; p = Process(1); print(p.process.pid, flush=True); import time; time.sleep(600)"
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        pid = int(parent.stdout.readline())
        assert not gone(pid, 0.1)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        assert gone(pid)


def test_what_libraries_print_does_not_reach_the_answers(tmp_path, batches):
    with Process(1) as process:
        answer = process.load("torch", rogue.form(tmp_path / "noisy", "noisy"), "fp32", batches, None)
        assert answer["describe"]["engine"] == "torch"
        process.ask("outputs", batches=str(batches), to=str(tmp_path / "o.npy"))
        assert len(process.ask("time", seconds=0, skip=1)["ms"]) == 2
        process.errors.seek(0)
        said = process.errors.read().decode()
    assert "a library prints its banner" in said
    assert "and so does its child" in said
    assert np.allclose(np.load(tmp_path / "o.npy")[:3], 2 * tiny.rows(3, 1)["features"])


@pytest.mark.parametrize(("code", "expected"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "SIGKILL, usually for lack of memory"), (-11, "ended by SIGSEGV")])
def test_endings_in_words(code, expected):
    assert expected in room._ending(code)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_threads_reach_the_process():
    with Process(3) as process:
        environment = dict(part.split("=", 1) for part in Path(f"/proc/{process.process.pid}/environ").read_text().split("\0") if "=" in part)
    assert (environment["OMP_NUM_THREADS"], environment["MKL_NUM_THREADS"], environment["HF_HUB_OFFLINE"]) == ("3", "3", "1")
