"""What a walk from safe to bold keeps, by right answers and by the mean score."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lissome.compress.quality import judged, quality_kept, verdict, walked
from lissome.core.errors import BadTask
from lissome.core.task import Task, correct


def task() -> Task:
    return Task("answers", "classification", {}, lambda *_: {}, correct, "answers", "answers")


def scores(lost: int, gained: int, n: int = 2000) -> np.ndarray:
    """Of 1,600 right answers so many become wrong, and of 400 wrong ones so many right."""
    found = np.ones(n)
    found[1600:] = 0
    found[:lost], found[1600 : 1600 + gained] = 0, 1
    return found


DENSE = scores(0, 0)


@pytest.mark.parametrize(("risk", "at"), [("lost", None), ("drop", 1)])
def test_answers_that_get_better_weigh_only_against_a_drop(risk, at):
    found, kept = walked([(30, 40), (60, 90), (90, 0)], lambda rung: scores(*rung), DENSE, task(), 0.01, 0.05, risk)
    assert found == at
    assert kept == pytest.approx([1 - 30 / 2000] if risk == "lost" else [1 + 10 / 1600, 1 + 30 / 1600, 1 - 90 / 1600])


def test_too_few_examples_for_a_mean_score():
    few = np.repeat([1.0, 0.0], [256, 64])
    assert walked([0], lambda _: few, few, task(), 0.01, 0.05, "lost")[0] == 0
    with pytest.raises(BadTask, match=r"the validation split has 320 examples, too few to certify that 0\.99 of the mean score is kept"):
        walked([0], lambda _: few, few, task(), 0.01, 0.05, "drop")


def test_scores_that_are_not_right_or_wrong():
    graded = dataclasses.replace(task(), exact=False)
    dense = np.random.default_rng(0).uniform(0.2, 0.8, 2000)
    found, kept = walked([0.0, 0.001, 0.1], lambda fall: dense * (1 - fall), dense, graded, 0.01, 0.05, "drop")
    assert found == 1 and kept == pytest.approx([1, 0.999, 0.9])


def test_each_look_at_the_test_split_raises_the_bar():
    uppers = [judged(DENSE, scores(30, 30), task(), 0.01, 0.05, seen, risk="drop").upper for seen in (1, 2, 5)]
    assert uppers == sorted(uppers) and uppers[0] < uppers[-1]


def test_a_mean_score_may_rise_and_right_answers_may_not():
    kept = {risk: quality_kept(judged(DENSE, scores(10, 90), task(), 0.01, 0.05, 1, risk=risk)) for risk in ("lost", "drop")}
    assert kept["lost"].value == pytest.approx(99.5) and kept["lost"].name == "quality kept"
    assert kept["drop"].value == pytest.approx(105) and kept["drop"].name == "mean score kept" and kept["drop"].low < 105 < kept["drop"].high


@pytest.mark.parametrize("risk", ["lost", "drop"])
def test_the_walk_ends_at_the_first_that_is_not_certified(risk):
    looked = []

    def given(rung):
        looked.append(rung)
        return scores(rung, 0)

    assert walked([0, 200, 0], given, DENSE, task(), 0.01, 0.05, risk)[0] == 0 and looked == [0, 200]
    assert walked([200, 0], given, DENSE, task(), 0.01, 0.05, risk)[0] is None


@pytest.mark.parametrize(
    ("risk", "said"), [("lost", "NOT MET   quality kept >= 99 % (95 %): measured 97.00"), ("drop", "MET   mean score kept >= 99 % (95 %)")]
)
def test_the_verdict_says_what_was_promised(risk, said):
    test = judged(DENSE, scores(60, 90), task(), 0.01, 0.05, 1, risk=risk)
    assert test.certified == said.startswith("MET") and verdict(test, 1).startswith(said)
