"""Documents to windows of exactly one length, as language models are trained and scored on: streams throughout, nothing but the window at hand is held.

    windows = pack(token_ids(texts(paths), tokenizer), length=2048, separator=eos)

Documents follow one another with the separator behind each; a window may hold the end of one and the beginning of the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lissome.core.errors import BadConfig, BadTask
from lissome.data.rows import json_values

if TYPE_CHECKING:
    import tokenizers

PLAIN = (".txt", ".md", ".rst")
LINES = (".jsonl", ".ndjson")
IGNORED = -100
"""A target that is not scored, as torch's losses and transformers have it."""
TOGETHER = 64
"""Documents tokenised at once; the tokenizer spreads them over its threads."""

Remainder = Literal["drop", "pad"]


@dataclass(frozen=True)
class Window:
    """A stretch of the stream of tokens.

    ids: int32 [length], shorter only for a remainder that is to be padded. targets: int32 of the same length, the token after each place, IGNORED behind the
    last and where an earlier window has scored it already. documents: int32, which document of the stream each token is of, from 0 in every window; the
    separator is of the document before it. It is what `nn.attention.patterns.select` takes to keep documents apart.
    """

    ids: np.ndarray
    targets: np.ndarray
    documents: np.ndarray


def pack(
    documents: Iterable[Sequence[int] | np.ndarray], length: int, separator: int, *, stride: int | None = None, remainder: Remainder = "drop"
) -> Iterator[Window]:
    """Windows of `length` tokens over the documents' token ids, one beginning `stride` tokens after the other (`length` unless given).

    Windows that overlap score each token once: where it has the longest past. The tokens that fill no window are dropped, or, with "pad", come as a last,
    shorter window. Raises BadConfig for a length below 2 or a stride that leaves tokens out.
    """
    step = length if stride is None else stride
    if length < 2 or not 1 <= step <= length:
        raise BadConfig(f"windows of {length} tokens every {step} cannot be cut", expected="a length of at least 2, and a stride from 1 to the length")
    held, owners = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
    scored = 0  # how many tokens at the front of `held` an earlier window has held, the separator's place included
    for number, ids in enumerate(documents):
        if not len(ids):
            continue
        held = np.concatenate([held, np.asarray(ids, dtype=np.int32), np.array([separator], dtype=np.int32)])
        owners = np.concatenate([owners, np.full(len(ids) + 1, number)])
        at = 0
        while len(held) - at >= length:
            yield _window(held[at : at + length], owners[at : at + length], scored)
            at, scored = at + step, length - step
        held, owners = held[at:], owners[at:]
    if remainder == "pad" and len(held) > max(1, scored):
        yield _window(held, owners, scored)


def _window(ids: np.ndarray, owners: np.ndarray, scored: int) -> Window:
    """One window; the first `scored` tokens are there as context alone."""
    targets = np.append(ids[1:], np.int32(IGNORED)).astype(np.int32)
    targets[: max(0, scored - 1)] = IGNORED
    return Window(ids.copy(), targets, (np.unique(owners, return_inverse=True)[1]).astype(np.int32))


def token_ids(documents: Iterable[str], tokenizer: tokenizers.Tokenizer) -> Iterator[np.ndarray]:
    """Token ids of each document, int32, without the tokens that the tokenizer puts around a text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    stream = iter(documents)
    while some := list(itertools.islice(stream, TOGETHER)):
        for encoding in tokenizer.encode_batch(some, add_special_tokens=False):
            yield np.array(encoding.ids, dtype=np.int32)


def text_files(place: Path, where: str) -> list[Path]:
    """The file, or the text files of a folder and the folders in it, by name. where: what named it, for an error. Raises BadTask."""
    known = (*PLAIN, *LINES)
    if place.is_dir():
        found = sorted(path for path in place.rglob("*") if path.is_file() and path.suffix.lower() in known)
        if not found:
            raise BadTask(f'there is no text in the folder "{place}"', where=where, expected=f"files that end in {', '.join(known)}")
        return found
    if not place.is_file():
        raise BadTask(f'"{place}" does not exist', where=where, do="paths are relative to the YAML file: correct it, or put the text there")
    if place.suffix.lower() not in known:
        raise BadTask(f'"{place.name}" is of no known kind', where=where, expected=f"a folder, or a file that ends in {', '.join(known)}")
    return [place]


def texts(paths: Iterable[Path], column: str = "text", encoding: str = "utf-8") -> Iterator[str]:
    """Documents of the files in turn: a plain file is one, a line of .jsonl is one (its key `column`). Empty ones are left out.

    Raises BadTask with file and line for what is no text, no JSON object, or lacks the column.
    """
    for path in paths:
        try:
            with path.open(encoding="utf-8-sig" if encoding.lower().replace("-", "") == "utf8" else encoding) as file:
                found = _lines(path, file, column) if path.suffix.lower() in LINES else iter([file.read()])
                yield from (text for text in found if text.strip())
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise BadTask(f"byte {byte:#04x} is not {encoding} text", where=str(path), do="add `encoding: latin-1` (or the right one) to the task") from error
        except LookupError as error:
            raise BadTask(f'there is no encoding "{encoding}"', where=str(path), expected="utf-8, latin-1, ...") from error
        except OSError as error:
            raise BadTask(f"cannot read it: {error.strerror}", where=str(path), expected="a readable file") from error


def _lines(path: Path, file: Iterable[str], column: str) -> Iterator[str]:
    for number, record in json_values(path, file):
        text = record.get(column) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise BadTask(
                f'there is no text under the key "{column}"', where=f"{path}:{number}", expected=f'{{"{column}": "..."}}', do="set `text:` in the task"
            )
        yield text
