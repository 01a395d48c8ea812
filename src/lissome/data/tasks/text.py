"""Text classification from CSV, TSV or JSONL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lissome.core.cache import digest, file_sha256
from lissome.core.errors import BadInput, BadTask
from lissome.core.task import Padding, SplitName, Task, correct
from lissome.data.labels import class_ids, class_order
from lissome.data.rows import Rows, read_rows, some_lines
from lissome.data.splitting import ALGORITHM
from lissome.data.tasks.assemble import Examples, check_splits, divide, with_targets
from lissome.data.tasks.config import TaskFile, TextClassification
from lissome.data.tokens import Text, Tokens, load_tokens


def text_task(file: TaskFile, config: TextClassification, ref: str, model_dir: Path | None) -> Task:
    """The Task that a text-classification file describes; batches need a tokenizer, from `tokenizer:` or `model_dir`."""
    tables = read_tables(file, config)
    parts = {name: _examples(rows, file, config) for name, rows in tables.items()}
    divided = divide(parts, config.fractions, config.seed, config.allow_duplicates, str(file.path))
    every = [str(label) for part in divided.splits.values() for label in part.labels]
    classes = class_order(every, config.classes, file.at("classes" if config.classes else "label"))
    targets = {name: class_ids([str(label) for label in part.labels], classes) for name, part in divided.splits.items()}
    place = file.file(config.tokenizer) if config.tokenizer else model_dir
    tokens = load_tokens(place, file.at("tokenizer"), config.max_length, config.inputs) if place else None
    for part in divided.splits.values() if tokens else ():
        tokens.remember(part.inputs)  # type: ignore[union-attr]
    data = {name: file_sha256(rows.path) for name, rows in tables.items()}
    settings = config.model_dump(mode="json", exclude={"name", "tokenizer", "data", "splits"})
    task = Task(
        name=config.name or file.path.stem,
        kind=config.kind,
        splits=with_targets(divided.splits, targets),
        collate=tokens.collate if tokens else _no_tokenizer(file),
        score=correct,
        fingerprint=digest("text", ALGORITHM, data, settings, tokens.fingerprint if tokens else None),
        ref=ref,
        classes=classes,
        variable_length=True,
        parse=parse_pair if config.text_pair else parse_text,
        notes=divided.notes,
    )
    return check_splits(task, str(file.path))


def read_tables(file: TaskFile, config: Any) -> dict[SplitName, Rows]:
    """The file or files a task names, by split; {"train": all rows} when there is one."""
    named: dict[SplitName, str] = dict(config.splits) if config.splits else {"train": config.data}
    at = {name: file.at("splits", name) if config.splits else file.at("data") for name in named}
    return {name: read_rows(file.file(value), at[name], config.delimiter, config.encoding) for name, value in named.items()}


def optional_column(rows: Rows, name: str | None, role: str, file: TaskFile) -> list[str] | None:
    """A column that the task may leave out."""
    if name is None:
        return None
    rows.require(name, role, file.at(role))
    return rows.column(name)


def label_column(rows: Rows, name: str, file: TaskFile) -> list[str]:
    """The label column, stripped; empty cells are an error that names their lines."""
    rows.require(name, "label", file.at("label"))
    labels = [label.strip() for label in rows.column(name)]
    if empty := [i for i, label in enumerate(labels) if not label]:
        raise BadTask(
            f'{len(empty)} rows have no label in the column "{name}"', where=some_lines(rows.path, rows.lines, empty), do="fill them in, or remove those rows"
        )
    return labels


def _examples(rows: Rows, file: TaskFile, config: TextClassification) -> Examples:
    rows.require(config.text, "text", file.at("text"))
    inputs: list[Text] = list(rows.column(config.text))
    if config.text_pair:
        rows.require(config.text_pair, "text_pair", file.at("text_pair"))
        inputs = list(zip(rows.column(config.text), rows.column(config.text_pair), strict=True))
    labels = label_column(rows, config.label, file)
    distinct = len(set(labels))
    if distinct > 20 and distinct > 0.5 * len(labels):
        raise BadTask(
            f'the label column "{config.label}" has {distinct:,} different values in {len(labels):,} rows', where=file.at("label"), expected="a class per row"
        )
    groups, strata = optional_column(rows, config.group, "group", file), optional_column(rows, config.stratify, "stratify", file)
    return Examples(inputs, labels, groups, strata)


def _no_tokenizer(file: TaskFile) -> Any:
    def collate(examples: Sequence[Any], padding: Padding) -> NoReturn:
        raise BadTask(
            "texts cannot be batched without a tokenizer", where=str(file.path), do="set `tokenizer: FOLDER` in the task, or give a model whose folder has one"
        )

    return collate


def parse_text(text: str) -> Text:
    """A text from the command line: itself."""
    return text


def parse_pair(text: str) -> Text:
    """A pair from the command line: a JSON list of two texts."""
    try:
        pair = json.loads(text)
    except ValueError:
        pair = None
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
        raise BadInput("this task takes a pair of texts", expected='a JSON list, as ["first text", "second text"]')
    return pair[0], pair[1]


def tokens_of(task: Task) -> Tokens | None:
    """The tokenizer behind a text task's collate, for reports on lengths."""
    owner = getattr(task.collate, "__self__", None)
    return owner if isinstance(owner, Tokens) else None
