"""How raw inputs become batches, as data: what an artifact keeps of its task so that it can predict where the task's files are not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lissome.core.errors import BadArtifact, BadInput
from lissome.core.task import Collate, Task
from lissome.core.trust import check_target
from lissome.data.pixels import Normalise
from lissome.data.tasks.images import parse_picture
from lissome.data.tasks.tabular import Encoder
from lissome.data.tasks.text import parse_pair, parse_text
from lissome.data.tokens import Tokens

FILE = "inputs.json"


@dataclass(frozen=True)
class Inputs:
    """parse: one raw input as typed (a text, a picture's path, a row) -> an example. collate: examples -> a batch."""

    parse: Callable[[str], Any]
    collate: Collate
    classes: tuple[str, ...]


def save_inputs(task: Task, folder: Path) -> None:
    """Write inputs.json (and tokenizer.json) into `folder`. A task from a factory is kept as its reference."""
    owner = getattr(task.collate, "__self__", None)
    kept: dict[str, Any]
    if isinstance(owner, Tokens):
        pair = task.parse is parse_pair
        kept = {"kind": "text", "inputs": owner.inputs, "length": owner.length, "pad_id": owner.pad_id, "pad_type": owner.pad_type, "pair": pair}
        owner.tokenizer.save(str(folder / "tokenizer.json"))
    elif isinstance(owner, Normalise):
        example = task.splits["calibration"].inputs[0]
        shape = [int(size) for size in example.shape]
        kept = {"kind": "image", "name": owner.name, "mean": owner.mean, "std": owner.std, "shape": shape, "dtype": str(example.dtype)}
    elif isinstance(owner, Encoder):
        kept = {"kind": "tabular", **dataclasses.asdict(owner)}
    else:
        kept = {"kind": "factory", "ref": task.ref}
    (folder / FILE).write_text(json.dumps({**kept, "classes": task.classes}, indent=1), encoding="utf-8")


def load_inputs(folder: Path) -> Inputs:
    """Read what `save_inputs` wrote. Raises BadArtifact when it is absent or broken."""
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
        classes = tuple(kept.pop("classes"))
        return _LOADERS[kept.pop("kind")](kept, folder, classes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArtifact(f"it does not say how its inputs are made: {error}", where=str(folder / FILE)) from error


def _text(kept: dict[str, Any], folder: Path, classes: tuple[str, ...]) -> Inputs:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = Tokens(tokenizer, tuple(kept["inputs"]), kept["length"], kept["pad_id"], kept["pad_type"], "")
    return Inputs(parse_pair if kept["pair"] else parse_text, tokens.collate, classes)


def _image(kept: dict[str, Any], folder: Path, classes: tuple[str, ...]) -> Inputs:
    normalise = Normalise(kept["name"], *(tuple(kept[key]) if kept[key] else None for key in ("mean", "std")))
    channels, height, width = kept["shape"]

    def parse(text: str) -> Any:
        return parse_picture(text, (channels, height, width), kept.get("dtype", "uint8"))

    return Inputs(parse, normalise.collate, classes)


def _tabular(kept: dict[str, Any], folder: Path, classes: tuple[str, ...]) -> Inputs:
    numeric = {name: (mean, std) for name, (mean, std) in kept["numeric"].items()}
    categorical = {name: tuple(values) for name, values in kept["categorical"].items()}
    encoder = Encoder(tuple(kept["columns"]), numeric, categorical, kept["input"])
    return Inputs(encoder.parse, encoder.collate, classes)


def _factory(kept: dict[str, Any], folder: Path, classes: tuple[str, ...]) -> Inputs:
    from lissome.data.tasks import load_task

    check_target(kept["ref"], str(folder / FILE), BadArtifact)
    task = load_task(kept["ref"])
    return Inputs(task.parse or _no_parse(kept["ref"]), task.collate, classes)


def _no_parse(ref: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        raise BadInput("this task does not say how a typed input becomes an example", where=ref, do="give the Task a `parse` function, or predict from Python")

    return parse


_LOADERS: dict[str, Callable[[dict[str, Any], Path, tuple[str, ...]], Inputs]] = {"text": _text, "image": _image, "tabular": _tabular, "factory": _factory}


def parsed(inputs: Inputs, raw: Sequence[Any]) -> list[Any]:
    """Examples of raw inputs: typed strings are parsed, anything else is an example already."""
    return [inputs.parse(one) if isinstance(one, str) else one for one in raw]
