from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from lissome.core.errors import BadInput
from lissome.engines import measure as room
from lissome.engines.measure import Result, Subject, measure, speedup
from lissome.engines.process import EngineFailed
from lissome.machine.energy import Availability
from tests.nn import tiny


class Meter:
    """A counter of energy that moves by two joules a reading."""

    name, covers = "fake", "nothing"

    def __init__(self, grain_j=0.001, ok=True):
        self.grain_j, self.ok, self.read = grain_j, ok, 0

    def available(self):
        return Availability(self.ok, "because")

    def read_joules(self):
        self.read += 1
        return 2.0 * self.read


class Fake:
    """Stands where a measured process is: scripted by the name of the form, logs what it is asked."""

    log: ClassVar[list[tuple[str, str]]] = []
    peak: ClassVar[dict[str, float]] = {"big": 500.0}

    def __init__(self, threads):
        self.threads, self.name, self.times, self.closed, self.cold_start_s = threads, "?", 0, False, 0.25

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def load(self, engine, form, precision, batches, shapes):
        self.name = form
        if form == "unloadable":
            raise EngineFailed("it cannot be loaded")

    def ask(self, do, **request):
        self.log.append((self.name, do))
        if do == "warm":
            value = {"off": 1.5, "wrong shape": np.ones((4, 1))}.get(self.name, 1.0)
            np.save(request["to"], value if isinstance(value, np.ndarray) else np.full((4, 2), value))
            return {}
        self.times += 1
        if self.name == "tiring" and self.times == 3:
            raise EngineFailed("it has had enough")
        scale = {"slow": 3.0}.get(self.name, 1.0) * self.times
        return {"ms": [scale * 1.0, scale * 2.0, scale * 3.0, scale * 10.0]}

    def peak_mb(self, machine):
        if self.name == "vanishing" and self.times:
            raise BadInput("process 1 has no memory to read: it has ended")
        return self.peak.get(self.name, 100.0)

    def close(self):
        if not self.closed:
            self.log.append((self.name, "close"))
        self.closed = True


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(Fake, "log", [])
    monkeypatch.setattr(room, "Process", Fake)
    monkeypatch.setattr(room, "find_meter", lambda: Meter(ok=False))
    return Fake


def subject(name, batch=4, size=3_000_000):
    return Subject(name, "engine", "fp32", name, [tiny.rows(batch)], size)


def run(*names, **options):
    return measure([subject(name) for name in names], "here", threads=1, **{"rounds": 4, **options}).results


def test_every_subject_gets_every_round(fake):
    results = run("a", "b", "c", rounds=5)
    assert [len(result.rounds[name]) for result in results for name in ("latency_p50", "throughput")] == [5] * 6
    assert [[len(ms) for ms in result.calls] for result in results] == [[4] * 5] * 3
    assert [result.cold_start_s for result in results] == [0.25] * 3


def test_order_rotates(fake):
    run("a", "b", "c", rounds=4)
    turns = [name for name, do in fake.log if do == "time"]
    assert turns == [*"abc", *"bca", *"cab", *"abc"]


def test_all_are_loaded_and_warmed_before_any_is_timed(fake):
    run("a", "b")
    asked = [do for _, do in fake.log]
    assert asked[:2] == ["warm", "warm"]
    assert "warm" not in asked[2:]


def test_every_process_is_closed(fake):
    run("a", "unloadable", "tiring", "b")
    assert sorted(name for name, do in fake.log if do == "close") == ["a", "b", "tiring", "unloadable"]


def test_figures(fake):
    figures = {figure.name: figure for figure in run("a", rounds=7)[0].figures("here")}
    assert {name: (f.unit, f.n, f.method, f.machine) for name, f in figures.items()} == {
        "latency_p50": ("ms", 7, "measured", "here"),
        "latency_p95": ("ms", 28, "measured", "here"),
        "throughput": ("1/s", 7, "measured", "here"),
        "memory": ("MB", 1, "measured", "here"),
        "cold_start": ("ms", 1, "measured", "here"),
        "size": ("MB", 1, "counted", "here"),
    }
    # Round k takes k * (1, 2, 3, 10) ms: the median of four calls is 2.5 k, their mean 4 k, four examples a call; k = 4 is the middle of 7.
    assert figures["latency_p50"].value == 10.0
    assert figures["latency_p50"].low < 10.0 < figures["latency_p50"].high
    assert figures["latency_p95"].value == pytest.approx(np.percentile([k * ms for k in range(1, 8) for ms in (1, 2, 3, 10)], 95))
    assert figures["throughput"].value == pytest.approx(1e3 * 4 / 16)
    assert (figures["memory"].value, figures["cold_start"].value, figures["size"].value) == (100.0, 250.0, 3.0)


def test_speedup(fake):
    slow, fast = run("slow", "fast", rounds=8)
    ratio = speedup(slow, fast, "latency_p50", "here")
    assert (ratio.name, ratio.unit, ratio.n) == ("speedup_latency_p50", "x", 8)
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(3.0), pytest.approx(3.0), pytest.approx(3.0)), "paired by round: both slow down alike"
    itself = speedup(fast, fast, "latency_p95", "here")
    assert itself.low <= 1.0 <= itself.high
    assert itself.value == 1.0


def test_a_failing_subject_is_marked_and_the_others_go_on(fake):
    good, unloadable, tiring, other = run("good", "unloadable", "tiring", "other", rounds=6)
    assert unloadable.failed == "it cannot be loaded"
    assert tiring.failed == "it has had enough"
    assert unloadable.rounds["latency_p50"] == []
    assert len(tiring.rounds["latency_p50"]) == 2
    for result in (good, other):
        assert result.failed is None
        assert len(result.rounds["latency_p50"]) == 6
    assert [do for name, do in fake.log if name == "tiring"].count("time") == 3, "it is not asked again"
    with pytest.raises(BadInput, match="no values"):
        unloadable.figures("here")


def test_a_process_that_has_gone_at_the_end_is_marked(fake):
    good, vanishing = run("good", "vanishing")
    assert good.failed is None
    assert "it has ended" in vanishing.failed


def test_all_fail(fake):
    assert [result.failed for result in run("unloadable", "unloadable")] == ["it cannot be loaded"] * 2
    assert run() == ()


def test_ram_bound(fake):
    original, big, small = run("original", "big", "small", ram_mb=250)
    assert big.failed == "measuring it beside the others needs more than the 250 MB allowed by --ram"
    assert original.failed is small.failed is None
    assert ("big", "close") in fake.log
    assert fake.log.index(("big", "close")) < fake.log.index(("small", "warm")), "its memory is free before the next begins"


def test_the_first_is_measured_whatever_the_bound(fake):
    (original,) = run("big", ram_mb=10)
    assert original.failed is None


def test_departure_is_from_the_first(fake):
    first, same, off, shape = run("a", "b", "off", "wrong shape")
    assert (first.departure, same.departure, off.departure) == (0.0, 0.0, pytest.approx(0.5))
    assert shape.departure == float("inf")
    assert [result.departure for result in run("unloadable", "b")] == [None, None]


def test_energy(fake, monkeypatch):
    monkeypatch.setattr(room, "find_meter", lambda: Meter())
    results = run("a", "b", rounds=6)
    for result in results:
        assert len(result.energy_mj) == 6
        energy = next(figure for figure in result.figures("here") if figure.name == "energy")
        # 2 J between two readings, over four timed and three unrecorded calls.
        assert (energy.value, energy.unit, energy.n, energy.method) == (pytest.approx(2e3 / (4 + room.SKIP)), "mJ", 6, "measured")


@pytest.mark.parametrize("meter", [Meter(ok=False), Meter(grain_j=36.0)])
def test_no_energy_without_a_counter_that_is_fine_enough(fake, monkeypatch, meter):
    monkeypatch.setattr(room, "find_meter", lambda: meter)
    (result,) = run("a")
    assert result.energy_mj == []
    assert all(figure.name != "energy" for figure in result.figures("here"))
    assert meter.read == 0


def test_progress_comes_to_its_end(fake):
    class Counted:
        total = steps = 0

        def stage(self, text, total=None):
            self.total, self.text = total, text

        def step(self, n=1, note=""):
            self.steps += n

    progress = Counted()
    run("a", "unloadable", progress=progress)
    assert progress.steps == progress.total == 2 + 4
    assert "2 ways, interleaved" in progress.text


def test_real_engines(forms, monkeypatch):
    """Two real processes and one that cannot load; nothing is asserted of their speed."""
    monkeypatch.setattr(room, "SLICE_S", 0.01)
    batches = [tiny.rows(2, seed) for seed in range(3)]
    fp32, int8 = forms.form("mlp", "onnxruntime", "fp32"), forms.form("mlp", "onnxruntime", "int8-dynamic")
    subjects = [
        Subject("fp32", "onnxruntime", "fp32", fp32, batches, 1000),
        Subject("int8", "onnxruntime", "int8-dynamic", int8, batches, 500, {"features": (2, 24)}),
        Subject("broken", "onnxruntime", "fp32", fp32.parent / "nowhere", batches, 1),
    ]
    found = measure(subjects, "here", rounds=3, threads=1)
    whole, quantised, broken = found.results
    assert "form.json" in broken.failed
    for result in (whole, quantised):
        assert result.failed is None
        assert all(len(ms) % 3 == 0 for ms in result.calls), "whole passes through the batches"
        figures = {figure.name: figure for figure in result.figures("here")}
        assert all(np.isfinite(figure.value) and figure.value > 0 for figure in figures.values())
        assert figures["latency_p50"].value <= figures["latency_p95"].value
    assert whole.departure == 0.0
    assert 0 < quantised.departure < 0.2
    assert found.noise.sentence


def test_plain_values_make_a_result_again(fake):
    """What the cache keeps of a result is enough to make it again."""
    (result,) = run("a")
    kept = {name: getattr(result, name) for name in ("rounds", "calls", "cold_start_s", "memory_mb", "energy_mj", "failed")}
    assert Result(result.subject, **kept).figures("here") == result.figures("here")
