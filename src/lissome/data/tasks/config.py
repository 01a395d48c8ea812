"""What a task file may say: one schema per kind, told apart by `kind`. A CSV needs a few lines:

kind: text-classification
data: reviews.csv        # or splits: {train: a.csv, test: b.csv}; what is missing is carved out of train
text: review
label: sentiment
group: author            # optional: rows of one author stay in one split
fractions: {train: 0.6, calibration: 0.05, validation: 0.15, test: 0.2}
seed: 0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import Field, field_validator, model_validator

from lissome.core.config import Config, line_of, read_yaml
from lissome.core.errors import closest
from lissome.core.task import SplitName
from lissome.data.splitting import Fractions


class TaskConfig(Config):
    """Keys that every kind has.

    data: one file, divided by `fractions` into the four splits. splits: a file per split instead; a missing one is carved out of train, in the
    same proportions. Both are relative to the YAML file. seed: of the division. allow_duplicates: accept examples that occur in several of
    the given files. name: shown in reports; the file's name unless given.
    """

    name: str | None = None
    fractions: Fractions = Fractions()
    seed: int = Field(default=0, ge=0)
    allow_duplicates: bool = False


class _Columns(TaskConfig):
    """Keys of the kinds that read CSV, TSV or JSONL.

    label: the column to predict. group: rows with the same value stay in one split. stratify: a further column whose values are spread evenly.
    delimiter: unless given, by suffix. encoding: of the text.
    """

    data: str | None = None
    splits: Mapping[SplitName, str] | None = None
    label: str = "label"
    group: str | None = None
    stratify: str | None = None
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    encoding: str = "utf-8"

    @model_validator(mode="after")
    def _either(self) -> _Columns:
        if (self.data is None) == (self.splits is None):
            raise ValueError("give either `data:` (one file) or `splits:` (a file per split)")
        _needs_train(self.splits)
        return self


class TextClassification(_Columns):
    """A text, or a pair of texts, to a class.

    text, text_pair: columns. classes: names in the order of the model's outputs; else labels are sorted (by number if whole numbers).
    tokenizer: a folder with tokenizer.json (or that file); else the model's folder. max_length: in tokens; longer texts are cut.
    inputs: names of the model's inputs in order; else read from the model's configuration.
    """

    kind: Literal["text-classification"]
    text: str = "text"
    text_pair: str | None = None
    classes: tuple[str, ...] | None = None
    tokenizer: str | None = None
    max_length: int | None = Field(default=None, ge=2)
    inputs: tuple[Literal["input_ids", "attention_mask", "token_type_ids"], ...] | None = None

    @field_validator("classes", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return _texts(value)


class ImageFiles(Config):
    """Images and labels that lie apart: two IDX files, or two arrays of the .npz file under `data`."""

    images: str
    labels: str


class ImageClassification(TaskConfig):
    """An image to a class.

    data: a folder with a folder per class, a .npz file, or an IDX file of images (also .gz) with `labels` beside it.
    images, labels: array names in the .npz; labels: the IDX file of labels.
    size: height and width every image is resized to; else all must have one size. channels: 1 (grey) or 3; else as the images are.
    mean, std: per channel, of values scaled to 0..1; batches hold (value - mean) / std as float32 [n, channels, height, width].
    input: the model's input name. classes: names in the order of the model's outputs; else sorted.
    """

    kind: Literal["image-classification"]
    data: str | None = None
    splits: Mapping[SplitName, str | ImageFiles] | None = None
    images: str | None = None
    labels: str | None = None
    size: tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input: str = "pixel_values"
    classes: tuple[str, ...] | None = None

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        value = (value, value) if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(value, (list, tuple)) and any(isinstance(v, int) and not 0 < v <= 65_536 for v in value):
            raise ValueError("height and width must be between 1 and 65,536")
        return value

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @field_validator("std")
    @classmethod
    def _positive(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and any(v <= 0 for v in value):
            raise ValueError("a standard deviation must be above 0")
        return value

    @field_validator("classes", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return _texts(value)

    @model_validator(mode="after")
    def _either(self) -> ImageClassification:
        if self.data is None and self.splits is None:
            raise ValueError("give either `data:` (a folder or a file) or `splits:` (one per split)")
        if self.data is not None and self.splits is not None and not self.data.lower().endswith(".npz"):
            raise ValueError("`data:` and `splits:` go together only for a .npz file (`splits` then names its arrays)")
        _needs_train(self.splits)
        return self


class Tabular(_Columns):
    """A row of numbers and categories to a class or a number.

    numeric, categorical: columns; unless given, a column is numeric if all its cells are numbers. ignore: columns left out.
    Numeric columns are standardised with the train split's mean and standard deviation, categories become one column each (1 or 0).
    input: the model's input name.
    """

    kind: Literal["tabular"]
    target: Literal["classification", "regression"] = "classification"
    numeric: tuple[str, ...] | None = None
    categorical: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    input: str = "features"
    classes: tuple[str, ...] | None = None

    @field_validator("classes", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return _texts(value)


class LanguageModelling(TaskConfig):
    """Text, and each token of it to be foretold from those before it.

    data: a folder or file of text (.txt, .md, .rst: a document each; .jsonl: a document a line), or a list of them. splits: such a place per split.
    text: the key of a .jsonl line that holds the text. length: tokens in a window. stride: tokens from one window to the next; below `length` windows
    overlap, and each token is scored where it has the longest past. remainder: whether the tokens that fill no window are dropped or padded.
    separator: the token between documents; else the tokenizer's end of text. tokenizer: a folder with tokenizer.json; else the model's folder.
    """

    kind: Literal["language-modelling"]
    data: tuple[str, ...] | None = None
    splits: Mapping[SplitName, tuple[str, ...]] | None = None
    text: str = "text"
    length: int = Field(default=512, ge=2)
    stride: int | None = Field(default=None, ge=1)
    remainder: Literal["drop", "pad"] = "drop"
    separator: str | None = None
    tokenizer: str | None = None
    encoding: str = "utf-8"

    @field_validator("data", mode="before")
    @classmethod
    def _some(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("splits", mode="before")
    @classmethod
    def _each(cls, value: Any) -> Any:
        return {name: (one,) if isinstance(one, str) else one for name, one in value.items()} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _either(self) -> LanguageModelling:
        if (self.data is None) == (self.splits is None):
            raise ValueError("give either `data:` (text, divided here) or `splits:` (text per split)")
        if self.stride is not None and self.stride > self.length:
            raise ValueError(f"a stride of {self.stride} would leave out tokens between windows of {self.length}")
        _needs_train(self.splits)
        return self


KINDS: dict[str, type[TextClassification] | type[ImageClassification] | type[Tabular] | type[LanguageModelling]] = {
    "language-modelling": LanguageModelling,
    "text-classification": TextClassification,
    "image-classification": ImageClassification,
    "tabular": Tabular,
}


class _Kind(Config):
    """Only the `kind` of a task file; everything else is left to that kind's schema."""

    model_config = pydantic.ConfigDict(extra="ignore", frozen=True)
    kind: str

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in KINDS:
            raise ValueError(f"there is no such kind of task.{closest(value, tuple(KINDS))} Known: {', '.join(KINDS)}")
        return value


@dataclass(frozen=True)
class TaskFile:
    """A task file that was read: its config, and where each key stands."""

    path: Path
    config: TextClassification | ImageClassification | Tabular | LanguageModelling
    node: yaml.Node | None

    def at(self, *keys: Any) -> str:
        """`task.yaml:LINE` of a key, or the file alone where the key is not written."""
        line = line_of(self.node, list(keys)) if self.node is not None else None
        return f"{self.path}:{line}" if line else str(self.path)

    def file(self, name: str) -> Path:
        """A path named in the file, taken relative to it."""
        return self.path.parent / Path(name).expanduser()


def read_task_file(path: Path) -> TaskFile:
    """Read and check a task's YAML. Raises BadConfig with file and line."""
    kind = read_yaml(path, _Kind).kind
    config = read_yaml(path, KINDS[kind])
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    return TaskFile(path, config, node)


def _needs_train(splits: Mapping[SplitName, Any] | None) -> None:
    if splits is not None and "train" not in splits:
        raise ValueError("`splits:` needs at least `train`; the others are carved out of it where they are missing")


def _texts(value: Any) -> Any:
    """Class names as text: YAML reads 0 and true as a number and a truth value."""
    if not isinstance(value, (list, tuple)):
        return value
    return tuple(str(v).lower() if isinstance(v, bool) else str(v) if isinstance(v, int) else v for v in value)
