"""Reading the four ground-truth files, and the real counts."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lissome.core.errors import BadTask
from lissome.core.task import SPLITS
from lissome.data.check import check_task
from lissome.data.sentiment import FILES, rows, sentiment_file, sentiment_task, write_task
from lissome.data.tasks import load_task

LINES = {
    "movie": "1\t2.26\tA splash\n2\t-0.4999\tUndecided\n3\t-0.5\tTepid\n",
    "amazon": '31_5\t2.4\twell worth the money.\r\n31_6\t-1\tworked, \tthen "froze"\r\n',
    "nyt": "500_9\t0.5\tThey sound a needed alarm\n",
    "tweet": "1\t-3\tUgh \x85 &amp; more\n\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for source, name in FILES.items():
        (tmp_path / name).write_text(LINES[source], encoding="utf-8", newline="")
    return tmp_path


def test_labels_groups_and_what_is_left_out(folder: Path) -> None:
    assert list(rows(folder)) == [
        ("A splash", "positive", "movie-1", "movie"),
        ("Tepid", "negative", "movie-3", "movie"),
        ("well worth the money.", "positive", "amazon-31", "amazon"),
        ('worked, \tthen "froze"', "negative", "amazon-31", "amazon"),
        ("They sound a needed alarm", "positive", "nyt-500", "nyt"),
        ("Ugh \x85 &amp; more", "negative", "tweet-1", "tweet"),
    ]


def test_both_encodings_are_read(folder: Path) -> None:
    path = folder / FILES["movie"]
    path.write_bytes("1\t2\tWe’ve seen\n".encode())
    assert next(rows(folder))[0] == "We’ve seen"
    path.write_bytes("1\t2\tcafé\n".encode("latin-1"))
    assert next(rows(folder))[0] == "café"


@pytest.mark.parametrize("line", ["no tabs", "1\tgood\ttext", "1\t2"])
def test_a_line_that_is_no_rating_is_named(folder: Path, line: str) -> None:
    (folder / FILES["nyt"]).write_text(f"1_1\t2\tfine\n{line}\n")
    with pytest.raises(BadTask, match=r"nytEditorialSnippets_GroundTruth.txt:2: not an id, a rating and a text"):
        list(rows(folder))


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / FILES["tweet"]).unlink()
    with pytest.raises(BadTask, match=r"tweets_GroundTruth.txt: cannot read it"):
        list(rows(folder))


def test_the_task_it_writes_is_one_that_anyone_could_have_written(tmp_path: Path) -> None:
    for source, name in FILES.items():
        text = "".join(f'{i // 5}_{i % 5}\t{(-1) ** i * 2}\t{source} text, "number" {i}\n' for i in range(300))
        (tmp_path / name).write_text(text)
    into = tmp_path / "made"
    into.mkdir()
    write_task(tmp_path, into)
    task = load_task(str(into / "sentiment.yaml"))
    assert task.classes == ("negative", "positive")
    assert sum(task.sizes().values()) == 1200
    group = {row["text"]: row["group"] for row in csv.DictReader((into / "sentiment.csv").open(encoding="utf-8"))}
    where: dict[str, set[str]] = {}
    for name in SPLITS:
        for text in task.splits[name].inputs:
            where.setdefault(group[text], set()).add(name)
    assert len(where) == 240
    assert all(len(names) == 1 for names in where.values())


@pytest.mark.network
def test_the_real_files(fetched) -> None:
    folder, cache = fetched("sentiment")
    everything = list(rows(folder))
    assert Counter(source for *_, source in everything) == {"movie": 10_072, "tweet": 3_432, "amazon": 2_985, "nyt": 2_970}
    assert Counter(label for _, label, _, _ in everything) == {"positive": 10_278, "negative": 9_181}
    assert len({group for *_, group, source in everything if source in ("amazon", "nyt")}) == 298 + 497
    assert not [text for text, *_ in everything if "â€" in text]  # Latin-1 would read the typographic quotes like this
    task = sentiment_task(None, cache)
    sizes = task.sizes()
    assert sizes["test"] >= 5_000
    assert 1_400 <= sizes["validation"] <= 1_700
    assert 1_200 <= sizes["calibration"] <= 1_500
    assert sum(sizes.values()) == len(everything)
    about = {text: (group, source) for text, _, group, source in everything}
    where: dict[str, set[str]] = {}
    shares = {}
    for name in SPLITS:
        for text in task.splits[name].inputs:
            where.setdefault(about[text][0], set()).add(name)
        counts = Counter(about[text][1] for text in task.splits[name].inputs)
        shares[name] = np.array([counts[source] / sizes[name] for source in FILES])
    # a text of two reviews ties them together, so each group is in one split
    assert all(len(names) == 1 for names in where.values())
    assert max(np.abs(shares[name] - shares["test"]).max() for name in ("train", "validation", "calibration")) < 0.02
    positive = [float((task.splits[name].targets == 1).mean()) for name in SPLITS]
    assert max(positive) - min(positive) < 0.01
    report = check_task(task)
    assert report.across == ()
    assert sentiment_file(cache) == sentiment_file(cache)
    assert sentiment_task(None, cache).fingerprint == task.fingerprint


@pytest.mark.network
@pytest.mark.slow
def test_with_the_real_tokenizer(fetched) -> None:
    folder, cache = fetched("minilm")
    fetched("sentiment")
    task = sentiment_task(folder, cache)
    batch = task.collate(["Well worth the money!", "No."], "multiple-of-16")
    assert list(batch) == ["input_ids", "attention_mask", "token_type_ids"]
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"][0, :7].tolist() == [101, 2092, 4276, 1996, 2769, 999, 102]
    lengths = check_task(task).lengths
    assert lengths is not None
    assert lengths.unit == "tokens"
    assert lengths.cut is not None
    assert lengths.cut < 0.005
