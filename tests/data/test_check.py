"""The report on a task."""

from __future__ import annotations

from pathlib import Path

import pytest

from lissome.data import TaskReport, check_task, load_task
from lissome.data.check import smallest_certifiable_drop


def test_a_sound_task(reviews: Path, tokenizer_dir: Path) -> None:
    report = check_task(load_task(str(reviews), tokenizer_dir))
    assert report.sizes == {"train": 120, "calibration": 10, "validation": 30, "test": 40}
    assert report.balance["test"] == {"neg": 20, "pos": 20}
    assert report.across == ()
    assert report.contradictory == 0
    assert report.lengths is not None
    assert (report.lengths.unit, report.lengths.limit, report.lengths.cut) == ("tokens", 32, 0.0)
    assert report.warnings == ("test has 40 rows: it can certify a drop of about 7.2 pt at the very least",)
    assert TaskReport.model_validate_json(report.model_dump_json()) == report


def test_words_where_there_is_no_tokenizer(reviews: Path) -> None:
    lengths = check_task(load_task(str(reviews))).lengths
    assert lengths is not None
    assert (lengths.unit, lengths.longest, lengths.cut) == ("words", 5, None)


def test_what_deserves_a_warning(write, tokenizer_dir: Path) -> None:
    rows = [f"text {i},{'rare' if i % 20 == 0 else 'usual'}" for i in range(400)]
    rows += ["same text,usual", "same text,rare", "Same  text,usual"] + [f",{'usual'}"] * 2 + [f"{'a ' * 60} {i},usual" for i in range(80)]
    write("a.csv", "text,label\n" + "\n".join(rows) + "\n")
    report = check_task(load_task(str(write("t.yaml", "kind: text-classification\ndata: a.csv\n")), tokenizer_dir))
    text = "\n".join(report.warnings)
    for part in (
        "test has 97 rows: it can certify a drop of about 3 pt",
        "test has fewer than 10 rows of rare",
        '% of test is "usual": accuracy says little',
        "1 examples occur with different targets",
        "% of the texts reach the limit of 32 tokens",
        "2 texts are empty",
    ):
        assert part in text, text
    assert sum(report.repeated.values()) == 3


def test_allowed_copies_and_crossing_groups_are_shown(write) -> None:
    body = "".join(f"text {i},{i % 2},g{i // 4}\n" for i in range(200))
    write("train.csv", "text,label,who\n" + body)
    write("test.csv", "text,label,who\n" + "".join(f"text {i},{i % 2},g{i // 4}\n" for i in range(190, 230)))
    path = write("t.yaml", "kind: text-classification\nsplits: {train: train.csv, test: test.csv}\ngroup: who\nallow_duplicates: true\n")
    report = check_task(load_task(str(path)))
    assert sum(overlap.count for overlap in report.across if overlap.second == "test") == 10
    assert any("examples also occur in" in warning for warning in report.warnings)
    assert "3 groups occur in both train and test" in report.warnings


@pytest.mark.parametrize(("n", "points"), [(120, 2.5), (300, 0.99), (5447, 0.055)])
def test_the_smallest_drop_that_can_be_certified(n: int, points: float) -> None:
    from scipy.stats import beta

    assert smallest_certifiable_drop(n) == pytest.approx(points, rel=0.02)
    assert smallest_certifiable_drop(n) == pytest.approx(100 * beta.ppf(0.95, 1, n))  # Clopper-Pearson with no event
