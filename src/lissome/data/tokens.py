"""Texts to token batches with the `tokenizers` library alone: no torch and no transformers import."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lissome.core.cache import digest, file_sha256
from lissome.core.errors import BadTask
from lissome.core.task import Padding

if TYPE_CHECKING:
    import tokenizers

Text = str | tuple[str, str]
Encoded = tuple[np.ndarray, np.ndarray]
"""Token ids and token type ids of one text, int32 [length] each."""

DEFAULT_LENGTH = 128
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass
class Tokens:
    """A tokenizer with its settings, and a memory of what it has tokenised.

    collate(texts, padding) gives int64 arrays [n, length] named `inputs`, padded on the right with `pad_id`.
    length: the most tokens a text may have; longer ones are cut. fingerprint: of the tokenizer's file and these settings.
    """

    tokenizer: tokenizers.Tokenizer
    inputs: tuple[str, ...]
    length: int
    pad_id: int
    pad_type: int
    fingerprint: str
    known: dict[Text, Encoded] = field(default_factory=dict, repr=False)
    waiting: list[Sequence[Text]] = field(default_factory=list, repr=False)

    def remember(self, texts: Sequence[Text]) -> None:
        """Have `texts` tokenised once, all together, when the first batch is asked for."""
        self.waiting.append(texts)

    def encode(self, texts: Iterable[Text]) -> list[Encoded]:
        """Ids and types of each text, from memory where they were remembered."""
        while self.waiting:
            pending = list(dict.fromkeys(self.waiting.pop()))
            self.known.update(zip(pending, self._tokenize(pending), strict=True))
        texts = list(texts)
        fresh = list(dict.fromkeys(text for text in texts if text not in self.known))
        found = dict(zip(fresh, self._tokenize(fresh), strict=True)) if fresh else {}
        return [self.known[text] if text in self.known else found[text] for text in texts]

    def _tokenize(self, texts: list[Text]) -> list[Encoded]:
        rows: Any = texts
        return [(np.array(e.ids, dtype=np.int32), np.array(e.type_ids, dtype=np.int32)) for e in self.tokenizer.encode_batch(rows)]

    def lengths(self, texts: Iterable[Text]) -> np.ndarray:
        """Tokens of each text after cutting, int64 [n]."""
        return np.array([len(ids) for ids, _ in self.encode(texts)], dtype=np.int64)

    def collate(self, texts: Sequence[Text], padding: Padding) -> dict[str, np.ndarray]:
        """A batch of texts as int64 arrays [n, length], in the order of `inputs`."""
        rows = self.encode(texts)
        longest = max((len(ids) for ids, _ in rows), default=1)
        width = {"longest": max(longest, 1), "multiple-of-16": min(-(-max(longest, 1) // 16) * 16, self.length), "fixed": self.length}[padding]
        batch = {
            "input_ids": np.full((len(rows), width), self.pad_id, dtype=np.int64),
            "attention_mask": np.zeros((len(rows), width), dtype=np.int64),
            "token_type_ids": np.full((len(rows), width), self.pad_type, dtype=np.int64),
        }
        for i, (ids, types) in enumerate(rows):
            batch["input_ids"][i, : len(ids)] = ids
            batch["attention_mask"][i, : len(ids)] = 1
            batch["token_type_ids"][i, : len(ids)] = types
        return {name: batch[name] for name in self.inputs}


def load_tokens(place: Path, where: str, max_length: int | None = None, inputs: Sequence[str] | None = None) -> Tokens:
    """The tokenizer of a model's folder (or a tokenizer.json file).

    max_length: unless given, the smaller of 128 and the model's positions. inputs: unless given, what the model's configuration says it takes.
    Raises BadTask when there is no readable tokenizer.json, no padding token, or max_length is beyond the model.
    """
    tokenizer, path = open_tokenizer(place, where)
    model = read_json(path.parent / "config.json")
    settings = read_json(path.parent / "tokenizer_config.json")
    pad_id, pad_type = _padding(tokenizer, model, settings, path)
    length = _length(model, max_length, where)
    names = tuple(inputs or _inputs(tokenizer, model, settings))
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return Tokens(tokenizer, names, length, pad_id, pad_type, digest(file_sha256(path), names, length, pad_id, pad_type))


def open_tokenizer(place: Path, where: str) -> tuple[tokenizers.Tokenizer, Path]:
    """The tokenizer of a model's folder (or a tokenizer.json file), and its file. Raises BadTask where there is none that can be read."""
    import tokenizers

    path = place / "tokenizer.json" if place.is_dir() else place
    if not path.is_file():
        raise BadTask(
            "there is no tokenizer.json",
            where=f"{where}: {place}" if place.is_dir() else f"{where}: {path}",
            expected="a folder with a fast tokenizer",
            do="set `tokenizer:` in the task, or make the file once: AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)",
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for a broken file
        raise BadTask(f"the tokenizer cannot be read: {error}", where=str(path), do="fetch the model's folder again") from error
    return tokenizer, path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is absent. Raises BadTask for a broken one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadTask(f"it cannot be read: {error}", where=str(path), expected="JSON", do="fetch the model's folder again") from error
    return value if isinstance(value, dict) else {}


def _padding(tokenizer: tokenizers.Tokenizer, model: dict[str, Any], settings: dict[str, Any], path: Path) -> tuple[int, int]:
    """(id, type id) to pad with: the tokenizer's own setting, its named pad token, the model's pad id, a usual name, or the end-of-text token."""
    own = tokenizer.padding
    if own:
        return int(own["pad_id"]), int(own["pad_type_id"])
    named = {key: value.get("content") if isinstance(value, dict) else value for key, value in settings.items() if key in ("pad_token", "eos_token")}
    own_name = named.get("pad_token")
    if isinstance(own_name, str) and (found := tokenizer.token_to_id(own_name)) is not None:
        return found, 0
    if isinstance(model.get("pad_token_id"), int):
        return int(model["pad_token_id"]), 0
    for text in ("[PAD]", "<pad>", named.get("eos_token")):
        if isinstance(text, str) and (found := tokenizer.token_to_id(text)) is not None:
            return found, 0
    raise BadTask("the tokenizer has no padding token", where=str(path), do='set "pad_token" in the tokenizer_config.json beside it')


def _length(model: dict[str, Any], asked: int | None, where: str) -> int:
    """The maximum in tokens, within the model's positions. A pad id above zero shifts them by pad id + 1 in the RoBERTa family."""
    positions = model.get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0:
        return asked or DEFAULT_LENGTH
    if str(model.get("model_type")) in ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "longformer"):
        positions -= int(model.get("pad_token_id") or 1) + 1
    if asked and asked > positions:
        raise BadTask(f"`max_length` is {asked}, the model has {positions} positions", where=where, expected=f"at most {positions}")
    return asked or min(DEFAULT_LENGTH, positions)


def _inputs(tokenizer: tokenizers.Tokenizer, model: dict[str, Any], settings: dict[str, Any]) -> tuple[str, ...]:
    """The inputs that the model takes: as its files name them, else token types where it has more than one (BERT: 2, RoBERTa: 1, DistilBERT: none)."""
    named = settings.get("model_input_names")
    if isinstance(named, list) and "input_ids" in named:
        return tuple(name for name in INPUTS if name in named)
    types = int(model.get("type_vocab_size") or 0) > 1 if model else max(tokenizer.encode("a", "b").type_ids, default=0) > 0
    return INPUTS if types else INPUTS[:2]
