from __future__ import annotations

import pytest
import torch

from lissome.train.callbacks import History, KeepBest, Run
from lissome.train.config import TrainConfig
from tests.train.small import small


def run_of(module, total=100):
    return Run(module, TrainConfig(), total)


def feed(best, run, scores):
    scores = iter(scores)
    best.evaluate = lambda module: next(scores)
    while run.step < run.total and not run.stopped:
        run.step += 1
        torch.nn.init.constant_(run.module.head.bias, float(run.step))
        best.on_step(run)
    best.on_end(run)


@pytest.mark.parametrize(("least", "step"), [(False, 2), (True, 3)])
def test_best_weights_come_back(least, step):
    run, best = run_of(small(), 4), KeepBest(lambda _: 0.0, every=1, least=least)
    feed(best, run, [0.5, 0.9, 0.1, 0.9])
    assert best.step == step
    assert run.module.head.bias[0] == step
    assert [row["score"] for row in best.scores] == [0.5, 0.9, 0.1, 0.9]


def test_evaluates_at_the_end_what_was_not_looked_at():
    run, best = run_of(small(), 5), KeepBest(lambda _: 0.0, every=2)
    feed(best, run, [0.1, 0.2, 0.3])
    assert (best.step, best.score) == (5, 0.3)
    assert run.metrics == {"validation": 0.3}


def test_patience():
    run, best = run_of(small(), 50), KeepBest(lambda _: 0.0, every=1, patience=3)
    feed(best, run, [0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3, 0.3])
    assert run.step == 8
    assert run.stopped == "no progress in 3 evaluations since step 5"


def test_evaluates_in_eval_mode_without_gradients_and_goes_back():
    run = run_of(small().train(), 1)

    def evaluate(module):
        assert not module.training
        assert not torch.is_grad_enabled()
        return 1.0

    KeepBest(evaluate).look(run)
    assert run.module.training


def test_by_epoch_unless_steps_are_given():
    run = run_of(small(), 9)
    best = KeepBest(lambda _: 1.0)
    best.on_step(run)
    assert best.scores == []
    best.on_epoch(run)
    assert len(best.scores) == 1


def test_history_is_short_and_averages():
    run, history = run_of(small(), 1000), History(rows=10)
    for step in range(1, 1001):
        run.step = step
        run.loss = float(run.step)
        history.on_step(run)
    assert len(history.rows) == 10
    assert history.rows[0]["loss"] == pytest.approx(50.5)
    assert history.rows[-1]["step"] == 1000


def test_the_first_reason_stands():
    run = run_of(small())
    run.stop("a")
    run.stop("b")
    assert run.stopped == "a"
