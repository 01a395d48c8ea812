"""What a walk from safe to bold keeps, by right answers and by the mean score."""

from __future__ import annotations

import numpy as np
import pytest

from lissome.compress.quality import judged, verdict, walked
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
    assert test.certified == said.startswith("MET") and verdict(test, 1, risk).startswith(said)
