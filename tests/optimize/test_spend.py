"""What --spend ends, and what is left of it. The clock is the test's own: it goes on with the steps of a training, or when it is told to."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from lissome.compress.distill import teacher
from lissome.core.cache import Cache
from lissome.core.contract import Contract
from lissome.core.errors import OutOfTime
from lissome.core.manifest import Option
from lissome.data import load_task
from lissome.machine.identity import identify
from lissome.nn.load import load_model
from lissome.optimize import bench as benches
from lissome.optimize import costs, escalate, precision, shrink
from lissome.optimize.bench import make_bench, vary
from lissome.optimize.escalate import CannotHelp, Climb, Shape, check_time
from lissome.optimize.options import ORIGINAL
from lissome.optimize.run import optimize
from lissome.optimize.sensitivity import probe_of
from lissome.optimize.structure import structure_of
from lissome.optimize.tables import Row, build_rows
from lissome.train import loop
from tests.optimize.test_escalate import Heard


class Clock:
    """Seconds that pass: `step` of them with every step of a training."""

    def __init__(self, monkeypatch):
        self.now, self.step, self.steps = 1000.0, 0.0, 0
        stand_in = SimpleNamespace(monotonic=lambda: self.now, perf_counter=time.perf_counter)
        for room in (benches, loop, teacher):
            monkeypatch.setattr(room, "time", stand_in)
        real = loop._step

        def step(*arguments):
            real(*arguments)
            self.now += self.step
            self.steps += 1

        monkeypatch.setattr(loop, "_step", step)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture(autouse=True)
def _apart(here, tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "own-cache"))


def bench_of(here, contract, folder=None, heard=None):
    return make_bench(load_model("tiny_model:build"), load_task(str(here / "task.yaml")), contract, identify(), Cache(folder), heard or Heard())


LIMITS = {"max_drop": "3%", "size": "5x"}
PUPIL = """
from torch import manual_seed, nn


def build():
    manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
"""


def test_lessons_end_with_the_time_and_the_next_contract_goes_on(here, tmp_path, monkeypatch, clock):
    """29 steps an epoch, ten seconds each: the time is up after 60 of 116."""
    clock.step = 10
    (tmp_path / "pupil_model.py").write_text(PUPIL)
    monkeypatch.syspath_prepend(tmp_path)
    student = load_model("pupil_model:build")
    bench = bench_of(here, Contract(**LIMITS, spend="600s"))
    early = shrink.taught(bench, student, "smaller", (), 4, ("planned",))
    assert clock.steps == 60
    assert early.change == "smaller, distilled 2.07 of 4 epochs"
    assert early.steps[0] == "planned"
    assert early.steps[1].startswith("taught by the original, stopped by --spend after 2.07 of 4 epochs")
    assert early.bench.model.fingerprint != student.fingerprint

    whole = shrink.taught(bench_of(here, Contract(**LIMITS)), student, "smaller", (), 4, ("planned",))
    assert clock.steps == 116, "it goes on where it stopped"
    assert whole.change == "smaller, distilled 4 epochs"
    assert whole.steps[1].startswith("taught by the original for 4 epochs")
    assert not list((tmp_path / "own-cache" / "training").iterdir())
    again = shrink.taught(bench_of(here, Contract(**LIMITS, spend="1s")), student, "smaller", (), 4, ())
    assert (again.change, clock.steps) == (whole.change, 116), "what is whole is read"
    alone = shrink.taught(bench_of(here, Contract(**LIMITS), tmp_path / "elsewhere"), student, "smaller", (), 4, ())
    assert alone.bench.model.fingerprint == whole.bench.model.fingerprint != early.bench.model.fingerprint


def test_training_in_int8_ends_with_the_time_and_the_next_contract_goes_on(here, tmp_path, clock):
    clock.step = 10
    bench = bench_of(here, Contract(**LIMITS, spend="100s"))
    start, _ = precision.best_scales(bench, probe_of(bench))
    early, change, step = precision.trained(bench, start, bench.model)
    assert (clock.steps, change) == (10, "trained in int8 for 0.345 of 1 epochs")
    assert step.startswith("trained with int8 in place, stopped by --spend after 0.345 of 1 epochs, ")
    free = bench_of(here, Contract(**LIMITS))
    whole, change, step = precision.trained(free, start, free.model)
    assert (clock.steps, change) == (29, "trained in int8")
    assert step.startswith("trained for 1 epoch with int8 in place, ")
    assert not list((tmp_path / "own-cache" / "training").iterdir())
    other = bench_of(here, Contract(**LIMITS), tmp_path / "elsewhere")
    alone, *_ = precision.trained(other, start, other.model)
    assert alone.fingerprint == whole.fingerprint != early.fingerprint


@pytest.mark.slow
def test_the_climb_judges_what_a_shortened_training_made(here, tmp_path, clock):
    """The tables take no time by this clock; the lessons end in the middle, what comes of them is judged, and no rung is begun after."""
    clock.step, heard = 10, Heard()
    task = str(here / "task.yaml")
    result = optimize("tiny_model:build", task, Contract(**LIMITS, spend="300s"), out=tmp_path / "artifact", progress=heard)
    assert any(text.startswith("Next: prune and distil, about ") for text in heard.said)
    taught = [row for row in result.manifest.tried if "distilled" in row.option.change]
    assert taught
    assert all(row.option.change.endswith("distilled 1.03 of 4 epochs") and row.figures for row in taught)
    left = ["Not tried: the smaller model in int8, distil for longer. --spend is used up."]
    assert [text for text in heard.said if "--spend is used up" in text] == ([] if result.verdict.status == "met" else left)


def test_what_takes_longer_than_is_left_is_begun_where_a_start_fits(here, clock):
    heard = Heard()
    bench = bench_of(here, Contract(size="5x", spend="200s"), heard=heard)
    check_time(bench, "lessons", 600, 60)
    assert heard.said == ["Next: lessons, about 10 min here, which --spend may cut short."]
    with pytest.raises(CannotHelp, match="It takes about 10 min here, about 4 min of it for a start, and --spend leaves less"):
        check_time(bench, "lessons", 600, 240)


def test_tables_are_not_begun_when_the_time_is_up_but_read_where_they_are_known(here, clock):
    bench = bench_of(here, Contract(**LIMITS, spend="10s"))
    structure, probe = structure_of(bench.model, bench.recipe.example), probe_of(bench)
    scores, option = shrink.unit_scores(bench, structure), Option(engine="onnxruntime", precision="fp32")
    clock.now += 11
    for table in (lambda: costs.losses(bench, structure, probe, scores), lambda: costs.savings(bench, structure, option, scores)):
        with pytest.raises(OutOfTime, match="--spend was used up before"):
            table()
    with pytest.raises(OutOfTime, match="--spend was used up before the scales were found"):
        precision.best_scales(bench, probe)
    known = costs.losses(bench_of(here, Contract(**LIMITS)), structure, probe, scores)
    assert costs.losses(bench, structure, probe, scores) == known


def test_a_rung_that_runs_out_of_time_is_left_out_with_a_sentence(here, monkeypatch, clock):
    heard = Heard()
    bench = bench_of(here, Contract(**LIMITS, spend="600s"), heard=heard)

    def late(climb):
        clock.now += 1000
        climb.bench.check_spend("the scales were found")

    monkeypatch.setattr(escalate, "RUNGS", tuple(escalate.Rung(name, late) for name in ("first", "second", "third")))
    monkeypatch.setattr(escalate, "recalled", lambda *_: [])
    monkeypatch.setattr(Climb, "solve", lambda *_: SimpleNamespace(ranked=()))
    assert escalate.escalate(bench, [Row(ORIGINAL)], "as before") == "as before"
    assert heard.said == [
        "Left out: first. --spend was used up before the scales were found; what it did so far is kept for the next contract.",
        "Not tried: second, third. --spend is used up.",
    ]


def test_without_time_for_a_step_the_scales_of_the_smaller_model_are_judged_alone(here, clock, monkeypatch):
    heard = Heard()
    bench = bench_of(here, Contract(**LIMITS, spend="1000s"), heard=heard)
    climb = Climb(bench, build_rows(bench, []), None)
    climb.shape = Shape(bench.model, (), [Option(engine="onnxruntime", precision="fp32")], "")
    climb.small = vary(bench, bench.model, "smaller")
    real = precision.best_scales

    def slow(*arguments):
        found = real(*arguments)
        clock.now += 1001
        return found

    monkeypatch.setattr(precision, "best_scales", slow)
    rows = escalate.small_in_int8(climb)
    assert [row.option.change for row in rows] == ["smaller, int8 scales searched"]
    assert "Without training: the time was up before the first step of a training." in heard.said
    with pytest.raises(CannotHelp, match="no smaller model to quantise"):
        escalate.small_in_int8(climb)  # once for every lesson: what is taught for longer is quantised anew, and nothing else twice
