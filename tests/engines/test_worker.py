"""The measured process's side, in this process."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from lissome.engines import worker
from lissome.engines.process import write_batches


class Counting:
    """A session that counts its calls and returns the first input."""

    def __init__(self):
        self.calls = []

    def run(self, inputs):
        self.calls.append(float(inputs["x"].flat[0]))
        return inputs["x"] * 2

    def layers(self, inputs):
        return {"z": inputs["x"], "a": inputs["x"] + 1}


def state_with(*values: float) -> worker.State:
    state = worker.State()
    state.session, state.batches = Counting(), [{"x": np.full((2, 1), value)} for value in values]
    return state


def test_nothing_is_loaded():
    for request in ("warm", "time", "outputs", "layers"):
        with pytest.raises(RuntimeError, match="nothing is loaded"):
            worker.REQUESTS[request](worker.State(), {"skip": 0, "seconds": 0, "batches": "", "to": ""})


def test_warm_runs_every_batch_once_and_keeps_the_outputs(tmp_path):
    state = state_with(1, 2, 3)
    worker.warm(state, {"to": str(tmp_path / "o.npy")})
    assert state.session.calls == [1, 2, 3]
    assert np.load(tmp_path / "o.npy").ravel().tolist() == [2, 2, 4, 4, 6, 6]


def test_warm_keeps_a_part_of_a_language_model_s_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "MOST", 12)
    state = state_with()
    state.batches = [{"x": np.arange(2 * 5 * 3).reshape(2, 5, 3)}, {"x": np.arange(4 * 3).reshape(2, 2, 3)}]
    worker.warm(state, {"to": tmp_path / "o.npy"})
    assert np.array_equal(np.load(tmp_path / "o.npy"), np.concatenate([2 * state.batches[0]["x"][:, ::3], 2 * state.batches[1]["x"]]))
    state.batches = [{"x": np.ones((40, 3))}]
    worker.warm(state, {"to": tmp_path / "o.npy"})
    assert np.load(tmp_path / "o.npy").shape == (40, 3)


@pytest.mark.parametrize("skip", [0, 2, 4])
def test_timing_takes_whole_passes_and_leaves_the_skipped_calls_out(skip):
    state = state_with(1, 2, 3)
    answer = worker.timed(state, {"skip": skip, "seconds": 0})
    assert len(answer["ms"]) == 3
    assert all(ms >= 0 for ms in answer["ms"])
    assert state.session.calls == [*[1, 2, 3, 1][:skip], 1, 2, 3]


def test_timing_goes_on_for_as_long_as_asked(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(worker.time, "perf_counter", lambda: float(next(clock)))
    assert len(worker.timed(state_with(1, 2), {"skip": 1, "seconds": 3})["ms"]) % 2 == 0


def test_times_are_milliseconds(monkeypatch):
    clock = iter([0, 1_500_000, 5_000_000, 5_250_000])
    monkeypatch.setattr(worker.time, "perf_counter_ns", lambda: next(clock))
    assert worker.timed(state_with(1, 2), {"skip": 0, "seconds": 0}) == {"ms": [1.5, 0.25]}


def test_outputs_in_the_order_of_the_batches(tmp_path):
    state = state_with(9)
    batches = write_batches([{"x": np.full((n % 3 + 1, 2), n)} for n in range(12)], tmp_path / "b.npz")
    worker.outputs(state, {"batches": str(batches), "to": str(tmp_path / "o.npy")})
    assert np.load(tmp_path / "o.npy")[:, 0].tolist() == [2 * n for n in range(12) for _ in range(n % 3 + 1)]


def test_batches_beyond_ten_thousand_keep_their_order(tmp_path):
    path = tmp_path / "b.npz"
    np.savez(path, **{f"{n:04d}/x": np.array([n]) for n in (9999, 10000, 2, 10001)})
    assert [int(batch["x"][0]) for batch in worker._read_batches(str(path))] == [2, 9999, 10000, 10001]


def test_batches_keep_names_order_and_dtypes(tmp_path):
    given = [{"input_ids": np.array([[1, 2]]), "a/b": np.array([[0.5]], np.float32)}]
    read = worker._read_batches(str(write_batches(given, tmp_path / "b.npz")))
    assert [list(batch) for batch in read] == [["input_ids", "a/b"]]
    assert {name: array.dtype for name, array in read[0].items()} == {"input_ids": np.int64, "a/b": np.float32}


def test_pickled_batches_are_refused(tmp_path):
    np.savez(tmp_path / "b.npz", **{"0000/x": np.array([{"an": "object"}], dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        worker._read_batches(str(tmp_path / "b.npz"))


def test_layers_keep_their_order(tmp_path):
    answer = worker.layers(state_with(1), {"to": str(tmp_path / "l.npz")})
    assert answer == {"names": ["z", "a"]}
    with np.load(tmp_path / "l.npz") as file:
        assert (file["0"][0, 0], file["1"][0, 0]) == (1, 2)


def test_answers_one_line_each_and_errors_are_answers():
    """main() in a pipe: unknown requests and failures are answered, and it ends with its input."""
    requests = "\n".join(json.dumps(request) for request in ({"do": "dance"}, {"do": "warm", "to": ""}, {}))
    done = subprocess.run([sys.executable, "-m", "lissome.engines.worker"], input=requests, capture_output=True, text=True, timeout=120, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers == [{"error": "KeyError: 'dance'"}, {"error": "RuntimeError: nothing is loaded"}, {"error": "KeyError: 'do'"}]
