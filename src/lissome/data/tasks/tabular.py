"""Tables of numbers and categories, to a class or a number."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lissome.core.cache import digest, file_sha256
from lissome.core.errors import BadInput, BadTask
from lissome.core.task import Padding, Split, SplitName, Task, correct
from lissome.data.labels import class_ids, class_order
from lissome.data.rows import Rows, cell, some_lines
from lissome.data.splitting import ALGORITHM
from lissome.data.tasks.assemble import Divided, Examples, check_splits, divide
from lissome.data.tasks.config import Tabular, TaskFile
from lissome.data.tasks.text import label_column, optional_column, read_tables

MAX_CATEGORIES = 200
"""A column with more values than this is no category but a number with stray cells, an id or free text."""


@dataclass(frozen=True)
class Encoder:
    """Turns rows into float32 [n, features]: (number - mean) / std, then one column per known category.

    columns: feature columns in the order of the file. numeric: name -> (mean, std) of the train split. categorical: name -> known values;
    a value that train does not have gives zeros in all of that column's features.
    """

    columns: tuple[str, ...]
    numeric: Mapping[str, tuple[float, float]]
    categorical: Mapping[str, tuple[str, ...]]
    input: str

    def encode(self, rows: Sequence[Sequence[Any]]) -> np.ndarray:
        """float32 [n, features] of rows of `columns`: floats for the numeric ones, texts for the others."""
        cells = dict(zip(self.columns, zip(*rows, strict=True), strict=True))
        features = [((np.array(cells[name], dtype=np.float64) - mean) / std)[:, None] for name, (mean, std) in self.numeric.items()]
        for name, known in self.categorical.items():
            position = {value: i for i, value in enumerate(known)}
            at = np.array([position.get(value, len(known)) for value in cells[name]])
            features.append(np.eye(len(known) + 1)[at, : len(known)])
        return np.concatenate(features, axis=1).astype(np.float32)

    def collate(self, rows: Sequence[np.ndarray], padding: Padding) -> dict[str, np.ndarray]:
        """A batch as float32 [n, features]; `padding` changes nothing."""
        return {self.input: np.stack(rows).astype(np.float32)}

    def parse(self, text: str) -> np.ndarray:
        """A row from the command line: a JSON object by column name, or CSV cells in the order of `columns`."""
        expected = f"a JSON object with, or CSV cells for: {', '.join(self.columns)}"
        if text.lstrip().startswith("{"):
            try:
                record = json.loads(text)
            except ValueError as error:
                raise BadInput(f"not valid JSON: {error}", expected=expected) from error
            if missing := [name for name in self.columns if name not in record]:
                raise BadInput(f'the column "{missing[0]}" is missing', expected=expected)
            cells = [cell(record[name]) for name in self.columns]
        else:
            cells = next(csv.reader([text]), [])
            if len(cells) != len(self.columns):
                raise BadInput(f"the row has {len(cells)} cells, the task {len(self.columns)} columns", expected=expected)
        row: list[Any] = []
        for name, value in zip(self.columns, cells, strict=True):
            number = _number(value) if name in self.numeric else None
            if name in self.numeric and (number is None or not math.isfinite(number)):
                raise BadInput(f'"{value}" in the column "{name}" is not a number', expected=expected)
            row.append(number if name in self.numeric else value.strip())
        parsed: np.ndarray = self.encode([row])[0]
        return parsed


def tabular_task(file: TaskFile, config: Tabular, ref: str) -> Task:
    """The Task that a tabular file describes."""
    tables = read_tables(file, config)
    columns, numeric = _features(tables["train"], file, config)
    parts = {name: _examples(rows, columns, numeric, file, config) for name, rows in tables.items()}
    divided = divide(parts, config.fractions, config.seed, config.allow_duplicates, str(file.path))
    encoder = _fit(divided.splits["train"], columns, numeric, config.input)
    targets, classes = _targets(divided, file, config)
    regression = config.target == "regression"
    settings = config.model_dump(mode="json", exclude={"name", "data", "splits"})
    task = Task(
        name=config.name or file.path.stem,
        kind=config.kind,
        splits={name: Split(list(encoder.encode(part.inputs)) if len(part) else [], targets[name]) for name, part in divided.splits.items()},
        collate=encoder.collate,
        score=negative_absolute_error if regression else correct,
        fingerprint=digest("tabular", ALGORITHM, {name: file_sha256(rows.path) for name, rows in tables.items()}, settings),
        ref=ref,
        exact=not regression,
        classes=classes,
        parse=encoder.parse,
        notes=(*divided.notes, _described(encoder)),
    )
    return check_splits(task, str(file.path))


def negative_absolute_error(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-|output - target| per example; outputs [n] or [n, 1], targets [n]."""
    errors: np.ndarray = -np.abs(np.asarray(outputs, dtype=np.float64).reshape(len(targets)) - targets)
    return errors


def _features(rows: Rows, file: TaskFile, config: Tabular) -> tuple[tuple[str, ...], frozenset[str]]:
    """(feature columns in the order of the file, those that are numeric)."""
    rows.require(config.label, "label", file.at("label"))
    for key in ("numeric", "categorical", "ignore"):
        for i, name in enumerate(getattr(config, key) or ()):
            rows.require(name, key, file.at(key, i))
    named = set(config.numeric or ()) | set(config.categorical or ())
    if config.label in named:
        raise BadTask(f'the label column "{config.label}" is among the features', where=file.at("numeric"), do="remove it there: a model would read the answer")
    if twice := set(config.numeric or ()) & set(config.categorical or ()):
        raise BadTask(f'the column "{min(twice)}" is both numeric and categorical', where=file.at("categorical"))
    apart = {config.label, config.group, config.stratify, *config.ignore}
    chosen = [name for name in rows.columns if name in named or (not (config.numeric and config.categorical) and name not in apart)]
    numeric = set(config.numeric or ())
    for name in chosen:
        if name in named:
            continue
        values = rows.column(name)
        filled = [_number(value) for value in values if value.strip()]
        if filled and None not in filled:
            numeric.add(name)
    if not chosen:
        raise BadTask("no columns are left as features", where=str(file.path), expected=f"some of {', '.join(rows.columns)}")
    return tuple(chosen), frozenset(numeric)


def _examples(rows: Rows, columns: tuple[str, ...], numeric: frozenset[str], file: TaskFile, config: Tabular) -> Examples:
    """Rows as tuples of floats and texts, in the order of `columns`."""
    cells: list[list[Any]] = []
    for name in columns:
        rows.require(name, "feature", str(file.path))
        cells.append(_numbers(rows, name) if name in numeric else _categories(rows, name, file))
    labels: Any = label_column(rows, config.label, file)
    if config.target == "regression":
        labels = np.array(_numbers(rows, config.label), dtype=np.float64)
    inputs = list(zip(*cells, strict=True))
    groups, strata = optional_column(rows, config.group, "group", file), optional_column(rows, config.stratify, "stratify", file)
    return Examples(inputs, labels, groups, strata)


def _numbers(rows: Rows, name: str) -> list[float]:
    """A numeric column; cells that are no finite numbers are an error that names their lines."""
    values = [_number(value) for value in rows.column(name)]
    bad = [i for i, value in enumerate(values) if value is None or not math.isfinite(value)]
    if bad:
        shown = rows.column(name)[bad[0]].strip()
        raise BadTask(
            f'{len(bad)} cells of the numeric column "{name}" are missing or not finite numbers (the first is {f"{shown!r}" if shown else "empty"})',
            where=some_lines(rows.path, rows.lines, bad),
            do="fill them, remove those rows, or list the column under `categorical:` or `ignore:`",
        )
    return [float(value) for value in values if value is not None]


def _categories(rows: Rows, name: str, file: TaskFile) -> list[str]:
    """A categorical column, stripped; one with very many values is refused."""
    values = [value.strip() for value in rows.column(name)]
    distinct = Counter(values)
    if len(distinct) > MAX_CATEGORIES:
        strays = [value for value in distinct if _number(value) is None]
        hint = f" Only {len(strays)} of them are no numbers, as {strays[0]!r}." if strays and len(strays) < 0.1 * len(distinct) else ""
        raise BadTask(
            f'the column "{name}" has {len(distinct):,} different values, too many for a category.{hint}',
            where=str(rows.path),
            expected=f"at most {MAX_CATEGORIES}",
            do=f"add `ignore: [{name}]` to {file.path.name}, or repair its numbers",
        )
    return values


def _number(text: str) -> float | None:
    """The number in a cell, NaN and infinity included; None for anything else."""
    try:
        return float(text)
    except ValueError:
        return None


def _fit(train: Examples, columns: tuple[str, ...], numeric: frozenset[str], name: str) -> Encoder:
    """Statistics of the train split: a constant column gets standard deviation 1."""
    scales, known = {}, {}
    for column, values in zip(columns, zip(*train.inputs, strict=True), strict=True):
        if column in numeric:
            array = np.array(values, dtype=np.float64)
            scales[column] = (float(array.mean()), float(array.std()) or 1.0)
        else:
            known[column] = tuple(sorted(set(values)))
    return Encoder(columns, scales, known, name)


def _targets(divided: Divided, file: TaskFile, config: Tabular) -> tuple[dict[SplitName, np.ndarray], tuple[str, ...]]:
    if config.target == "regression":
        return {name: np.asarray(part.labels, dtype=np.float64) for name, part in divided.splits.items()}, ()
    labels = {name: [str(label) for label in part.labels] for name, part in divided.splits.items()}
    classes = class_order([label for part in labels.values() for label in part], config.classes, file.at("classes" if config.classes else "label"))
    if len(classes) > 20 and len(classes) > 0.5 * sum(map(len, labels.values())):
        raise BadTask(f'the label column "{config.label}" has {len(classes):,} different values', where=file.at("label"), do="set `target: regression`")
    return {name: class_ids(part, classes) for name, part in labels.items()}, classes


def _described(encoder: Encoder) -> str:
    features = len(encoder.numeric) + sum(map(len, encoder.categorical.values()))
    return f"{len(encoder.numeric)} numeric and {len(encoder.categorical)} categorical columns give {features} features"
