from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadConfig, Interrupted, OutOfTime
from lissome.train.callbacks import Callback, KeepBest
from lissome.train.checkpoint import saved
from lissome.train.config import TrainConfig
from lissome.train.loop import LATE, train
from tests.train.killed import run as killed_run
from tests.train.small import bits, loader, loss, small


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", ["own", "plain"])
def test_kill_9_twice_then_resume_gives_the_same_bits(tmp_path, kind):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(Path(__file__).parent / "killed.py"), str(tmp_path / "run"), kind]
    found = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert found.stdout.split() == [str(-signal.SIGKILL.value)] * 2 + [killed_run(None, 0, kind == "plain"), "0"], found.stderr


class Stop(Callback):
    """Leave the process's run by an exception, after which nothing tidy happens."""

    def __init__(self, step: int):
        self.at = step

    def on_step(self, run):
        if run.step == self.at:
            raise RuntimeError("died")


@settings(max_examples=25, deadline=None)
@given(
    deaths=st.lists(st.integers(1, 24), max_size=3),
    every=st.integers(1, 9),
    accumulation=st.integers(1, 3),
    optimizer=st.sampled_from(["adamw", "adam", "sgd", "rmsprop", "adafactor"]),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
    precision=st.sampled_from(["fp32", "bf16"]),
    shuffle=st.booleans(),
)
def test_dying_anywhere_changes_no_bit(tmp_path_factory, deaths, every, accumulation, optimizer, schedule, precision, shuffle):
    config = TrainConfig(
        epochs=2.5,
        lr=0.02,
        accumulation=accumulation,
        optimizer=optimizer,
        schedule=schedule,
        precision=precision,
        checkpoint_every=every,
        optimizer_options={"momentum": 0.9} if optimizer in ("sgd", "rmsprop") else {},
    )

    def once(folder, die_at):
        module = small()
        train(module, loader(shuffle=shuffle), loss, config, callbacks=[KeepBest(lambda m: float(m.head.weight.sum()), every=4), Stop(die_at)], resume=folder)
        return bits(module)

    folder = tmp_path_factory.mktemp("run")
    for death in deaths:
        try:
            once(folder, death)
        except RuntimeError:
            continue
    assert once(folder, 0) == once(None, 0)


def test_a_finished_run_is_read_not_repeated(tmp_path):
    config = TrainConfig(epochs=2, precision="fp32")
    first, second, steps = small(), small(1), []

    class Count(Callback):
        def on_step(self, run):
            steps.append(run.step)

    train(first, loader(), loss, config, callbacks=[Count()], resume=tmp_path)
    done = len(steps)
    result = train(second, loader(), loss, config, callbacks=[Count()], resume=tmp_path)
    assert len(steps) == done == result.steps == result.resumed_from
    assert bits(first) == bits(second)
    assert result.history[-1]["step"] == done


def test_early_stop_stays_stopped(tmp_path):
    def once():
        best = KeepBest(lambda module: 1.0, every=1, patience=2)
        module = small()
        return train(module, loader(), loss, TrainConfig(steps=20, precision="fp32"), callbacks=[best], resume=tmp_path), bits(module)

    (first, weights), (second, again) = once(), once()
    assert first.steps == second.steps == 3
    assert second.stopped == first.stopped == "no progress in 2 evaluations since step 1"
    assert weights == again


def test_another_runs_checkpoint_is_refused(tmp_path):
    train(small(), loader(), loss, TrainConfig(steps=2, precision="fp32"), resume=tmp_path)
    with pytest.raises(BadConfig, match="another configuration or another model"):
        train(small(), loader(), loss, TrainConfig(steps=3, precision="fp32"), resume=tmp_path)
    with pytest.raises(BadConfig, match="another configuration or another model"):
        train(torch.nn.Linear(8, 3), loader(), loss, TrainConfig(steps=2, precision="fp32"), resume=tmp_path)


def test_a_run_against_something_else_is_another_run(tmp_path):
    config = TrainConfig(steps=2, precision="fp32")
    train(small(), loader(), loss, config, resume=tmp_path, identity="teacher A")
    for other in ("teacher B", ""):
        with pytest.raises(BadConfig, match=r"one that was trained against something else\.(.|\n)*resume with what the run was begun with"):
            train(small(), loader(), loss, config, resume=tmp_path, identity=other)
    assert train(small(), loader(), loss, config, resume=tmp_path, identity="teacher A").resumed_from == 2


def test_checkpoints_and_spend_may_differ(tmp_path):
    train(small(), loader(), loss, TrainConfig(steps=2, precision="fp32"), resume=tmp_path)
    result = train(small(), loader(), loss, TrainConfig(steps=2, precision="fp32", checkpoint_every=1, spend=1e6), resume=tmp_path)
    assert result.resumed_from == 2


def test_spend_stops_and_a_larger_one_goes_on(tmp_path):
    class Slow(Callback):
        def on_step(self, run):
            time.sleep(0.02)

    config = TrainConfig(steps=6, precision="fp32", spend=1e-6)
    module = small()
    result = train(module, loader(), loss, config, callbacks=[Slow()], resume=tmp_path)
    assert result.steps == 1
    assert result.stopped == "spend reached"
    more = train(module, loader(), loss, config.model_copy(update={"spend": 1e6}), callbacks=[Slow()], resume=tmp_path)
    assert (more.resumed_from, more.steps, more.stopped) == (1, 6, "")
    assert more.seconds > result.seconds  # what was spent before counts
    whole = small()
    train(whole, loader(), loss, config.model_copy(update={"spend": None}), callbacks=[Slow()])
    assert bits(whole) == bits(module)


def test_auto_precision_is_not_chosen_again_after_a_resume(tmp_path, monkeypatch):
    import lissome.train.loop as loop

    chosen = iter([("bf16", "measured"), ("fp32", "a second choice would change the bits")])
    monkeypatch.setattr(loop, "choose_precision", lambda *_: next(chosen))
    config = TrainConfig(steps=4, spend=1e-6)
    train(small(), loader(), loss, config, resume=tmp_path)
    result = train(small(), loader(), loss, config.model_copy(update={"spend": None}), resume=tmp_path)
    assert (result.precision, result.why) == ("bf16", "measured")


class PressCtrlC(Callback):
    def on_step(self, run):
        if run.step == 3:
            _thread.interrupt_main()  # as Ctrl-C does, without a signal that every library loaded by other tests has to survive


def test_ctrl_c_keeps_the_step_and_says_where(tmp_path):
    config = TrainConfig(steps=6, precision="fp32")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"after step 3 of 6(.|\n)*run the same command to go on") as caught:
        train(small(), loader(), loss, config, callbacks=[PressCtrlC()], resume=tmp_path)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in saved(tmp_path)] == ["step-00000003"]
    module, whole = small(), small()
    assert train(module, loader(), loss, config, callbacks=[Callback()], resume=tmp_path).resumed_from == 3
    train(whole, loader(), loss, config, callbacks=[Callback()])
    assert bits(module) == bits(whole)


def test_ctrl_c_without_a_folder_says_so():
    with pytest.raises(Interrupted, match="nothing is kept"):
        train(small(), loader(), loss, TrainConfig(steps=6, precision="fp32"), callbacks=[PressCtrlC()])


def test_runs_in_a_thread_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(train(small(), loader(), loss, TrainConfig(steps=2, precision="fp32")).steps))
    thread.start()
    thread.join()
    assert found == [2]


class Clock(Callback):
    """A clock that goes on by one second a step, and stands in for the training loop's."""

    def __init__(self, monkeypatch):
        import lissome.train.loop as room

        self.now = 100.0
        monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: self.now, perf_counter=time.perf_counter))

    def on_step(self, run):
        self.now += 1


@pytest.mark.parametrize("at", [1, 3, 8, 11])  # after the first step, in an epoch, at its end, in the second
def test_a_deadline_ends_the_run_and_a_later_one_goes_on_with_the_same_bits(tmp_path, monkeypatch, at):
    config = TrainConfig(epochs=2, lr=0.02, precision="fp32")
    clock, module = Clock(monkeypatch), small()

    def once(deadline, folder):
        best = KeepBest(lambda m: float(m.head.weight.sum()))
        return train(module, loader(), loss, config, callbacks=[best, clock], resume=folder, deadline=deadline), best

    result, best = once(100.0 + at, tmp_path)
    assert (result.steps, result.total, result.stopped) == (at, 16, LATE)
    assert best.scores[-1]["step"] == at, "the last weights are looked at too"
    module = small()
    result, best = once(clock.now - 1, tmp_path)
    assert (result.steps, result.resumed_from, result.stopped) == (at, at, LATE), "no time, no step; what there was is given back"
    module = small()
    result, _ = once(None, tmp_path)
    assert (result.steps, result.resumed_from, result.stopped) == (16, at, "")
    resumed, module = bits(module), small()
    once(1e9, None)
    assert bits(module) == resumed
    module = small()
    result, _ = once(clock.now - 1, tmp_path)
    assert (result.steps, result.stopped) == (16, ""), "a run that is finished is not late"
    assert bits(module) == resumed


def test_a_deadline_before_the_first_step_is_an_error(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    with pytest.raises(OutOfTime, match=r"the time was up before the first step of a training\.(.|\n)*allow more time"):
        train(small(), loader(), loss, TrainConfig(steps=2, precision="fp32"), resume=tmp_path, deadline=clock.now)
    assert saved(tmp_path) == []
