"""English sentiment in four domains: film reviews, product reviews, news and tweets with mean human ratings (Hutto and Gilbert, ICWSM 2014)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from lissome.core.cache import Cache, digest
from lissome.core.errors import BadTask
from lissome.core.progress import Progress
from lissome.core.task import Task
from lissome.data.sources import SOURCES, fetch
from lissome.data.tasks import load_task

FILES = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
    "tweet": "tweets_GroundTruth.txt",
}
NEUTRAL = 0.5
"""Ratings run from -4 to 4. Below this the raters did not agree on a side, so the sign is noise."""

TASK_FILE = """\
# Sentiment of film, product and news snippets and of tweets; rows of one review or article stay in one split.
kind: text-classification
name: sentiment
data: sentiment.csv
text: text
label: label
group: group
stratify: source
max_length: 64
seed: 0
fractions: {train: 0.55, calibration: 0.07, validation: 0.08, test: 0.3}
"""
"""Of 19,459 rows: about 10,700 train, 1,360 calibration, 1,560 validation, 5,840 test. 64 tokens hold 99.7 % of the texts (MiniLM's tokenizer)."""


def rows(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """(text, label, group, source) of every clearly rated row in the four files.

    A file's line is: id, mean rating, text, tab-separated. label: "positive" or "negative" by the rating's sign; |rating| < 0.5 is left out.
    group: "amazon-31" for the ids 31_1, 31_2, ...: snippets of one review or article. Raises BadTask with file and line for anything else.
    """
    for source, name in FILES.items():
        path = folder / name
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise BadTask(f"cannot read it: {error.strerror}", where=str(path), do="lissome cache clear sources, then run again") from error
        for number, line in enumerate(_text(raw).split("\n"), 1):
            if not line.strip():
                continue
            cells = line.rstrip("\r").split("\t", 2)
            try:
                identity, rating, text = cells[0], float(cells[1]), cells[2].strip()
            except (IndexError, ValueError) as error:
                raise BadTask("not an id, a rating and a text", where=f"{path}:{number}", expected="three tab-separated cells") from error
            if abs(rating) >= NEUTRAL and text:
                yield text, "positive" if rating > 0 else "negative", f"{source}-{identity.split('_')[0]}", source


def _text(raw: bytes) -> str:
    """UTF-8, which the published files are; Latin-1 for a file that is not."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def write_task(folder: Path, into: Path) -> None:
    """Write sentiment.csv and sentiment.yaml from the four files in `folder`."""
    with (into / "sentiment.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label", "group", "source"))
        writer.writerows(rows(folder))
    (into / "sentiment.yaml").write_text(TASK_FILE, encoding="utf-8")


def sentiment_file(cache: Cache | None = None, progress: Progress | None = None) -> Path:
    """The path of a task file, made in the cache from the fetched source; any command takes it after --task. Raises Unreachable."""
    cache = cache or Cache()
    key = f"sentiment-{digest(SOURCES['sentiment'].sha256, TASK_FILE, NEUTRAL, 1)}"
    return cache.folder("tasks", key, lambda into: write_task(fetch("sentiment", cache, progress), into)) / "sentiment.yaml"


def sentiment_task(tokenizer_dir: Path | None, cache: Cache | None = None, progress: Progress | None = None) -> Task:
    """The sentiment Task, tokenised with the tokenizer in `tokenizer_dir`: what load_task makes of sentiment_file()."""
    return load_task(str(sentiment_file(cache, progress)), model_dir=tokenizer_dir)
