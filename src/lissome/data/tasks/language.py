"""Language modelling: documents kept whole in one split, packed into windows of tokens; the score is a window's mean probability per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lissome.core.cache import digest, file_sha256
from lissome.core.errors import BadTask
from lissome.core.task import SPLITS, Padding, Split, SplitName, Task
from lissome.data.duplicates import keys_of, shared, show
from lissome.data.packing import IGNORED, pack, text_files, texts, token_ids
from lissome.data.splitting import ALGORITHM, split_rows, units_of
from lissome.data.tasks.assemble import check_splits
from lissome.data.tasks.config import LanguageModelling, TaskFile
from lissome.data.tokens import open_tokenizer, read_json

PIECE = 2048
"""Characters that count as one when documents are divided: the splits' shares are shares of text, not of documents."""
ROWS = 256
"""Places whose probabilities are computed at once by the score."""


@dataclass(frozen=True)
class Windows:
    """How windows become a batch: int64 arrays [n, length]; `masked` gives an attention_mask too, for windows that are padded on the right."""

    length: int
    pad_id: int
    masked: bool

    def collate(self, windows: Sequence[np.ndarray], padding: Padding) -> dict[str, np.ndarray]:
        """input_ids, and attention_mask where there is padding; the policy changes nothing, as all windows have one length."""
        ids = np.full((len(windows), self.length), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(windows), self.length), dtype=np.int64)
        for i, window in enumerate(windows):
            ids[i, : len(window)] = window
            mask[i, : len(window)] = 1
        return {"input_ids": ids, "attention_mask": mask} if self.masked else {"input_ids": ids}


def language_task(file: TaskFile, config: LanguageModelling, ref: str, model_dir: Path | None) -> Task:
    """The Task that a language-modelling file describes. It is made of tokens, so it needs a tokenizer, from `tokenizer:` or `model_dir`. Raises BadTask."""
    place = file.file(config.tokenizer) if config.tokenizer else model_dir
    if place is None:
        raise BadTask(
            "text cannot be cut into tokens without a tokenizer",
            where=str(file.path),
            do="set `tokenizer: FOLDER` in the task, or name a model whose folder has one (`lissome task check TASK --model FOLDER`)",
        )
    tokenizer, path = open_tokenizer(place, file.at("tokenizer"))
    separator = separator_of(tokenizer, path, config.separator, file.at("separator"))
    documents, files = _documents(file, config)
    divided, notes = _divided(documents, config, str(file.path))
    splits: dict[SplitName, Split] = {}
    for name in SPLITS:
        windows = list(pack(token_ids(divided[name], tokenizer), config.length, separator, stride=config.stride, remainder=config.remainder))
        targets = np.full((len(windows), config.length), IGNORED, dtype=np.int32)
        for i, window in enumerate(windows):
            targets[i, : len(window.targets)] = window.targets
        splits[name] = Split([window.ids for window in windows], targets)
        scored = int((targets != IGNORED).sum())
        notes.append(f"{name}: {len(divided[name]):,} documents, {len(windows):,} windows of {config.length:,} tokens, {scored:,} tokens scored")
        if not windows:
            raise BadTask(
                f"the {name} split has no window: its {len(divided[name])} documents hold fewer than {config.length:,} tokens",
                where=str(file.path),
                do="give more text, a shorter `length:`, `remainder: pad`, or other `fractions:`",
            )
    settings = config.model_dump(mode="json", exclude={"name", "tokenizer", "data", "splits"})
    task = Task(
        name=config.name or file.path.stem,
        kind=config.kind,
        splits=splits,
        collate=Windows(config.length, separator, config.remainder == "pad").collate,
        score=token_probability,
        fingerprint=digest("language", ALGORITHM, files, settings, file_sha256(path), separator),
        ref=ref,
        exact=False,
        notes=tuple(notes),
    )
    return check_splits(task, str(file.path))


def token_probability(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """exp(mean log-likelihood of a window's tokens), in (0, 1]: one over its perplexity. outputs: logits [n, length, vocabulary]; targets [n, length]."""
    found = np.zeros(len(targets))
    for i, (logits, wanted) in enumerate(zip(outputs, np.asarray(targets), strict=True)):
        at = np.flatnonzero(wanted != IGNORED)
        total = 0.0
        for begin in range(0, len(at), ROWS):
            some = at[begin : begin + ROWS]
            rows = np.asarray(logits[some], dtype=np.float64)
            rows -= rows.max(axis=-1, keepdims=True)
            total += float((rows[np.arange(len(some)), wanted[some]] - np.log(np.exp(rows).sum(axis=-1))).sum())
        found[i] = np.exp(total / max(1, len(at)))
    return found


def separator_of(tokenizer: object, path: Path, named: str | None, where: str) -> int:
    """The id of the token between documents: the one named, or else the end of text that the files beside the tokenizer name. Raises BadTask."""
    settings, model = read_json(path.parent / "tokenizer_config.json"), read_json(path.parent / "config.json")
    own = settings.get("eos_token")
    text = named or (own.get("content") if isinstance(own, dict) else own)
    found = tokenizer.token_to_id(text) if isinstance(text, str) else None  # type: ignore[attr-defined]
    if named and found is None:
        raise BadTask(f'the tokenizer has no token "{named}"', where=where, expected="one of its own tokens, such as <|endoftext|>")
    ends = model.get("eos_token_id")
    found = found if found is not None else ends[0] if isinstance(ends, list) and ends else ends
    if not isinstance(found, int):
        raise BadTask("the tokenizer names no token that ends a text", where=str(path), do="set `separator:` in the task to a token of the tokenizer")
    return found


def _documents(file: TaskFile, config: LanguageModelling) -> tuple[dict[SplitName, list[str]], dict[str, list[str]]]:
    """Documents by given split, and the sha256 of their files; {"train": all} where there is one place."""
    named: Mapping[SplitName, tuple[str, ...]] = config.splits or {"train": config.data or ()}
    found: dict[SplitName, list[str]] = {}
    files: dict[str, list[str]] = {}
    for name, places in named.items():
        at = file.at("splits", name) if config.splits else file.at("data")
        paths = [path for one in places for path in text_files(file.file(one), at)]
        found[name] = list(texts(paths, config.text, config.encoding))
        files[name] = [file_sha256(path) for path in paths]
        if not found[name]:
            raise BadTask("there is no text in it", where=at, expected="at least one document that is not empty")
    return found, files


def _divided(given: Mapping[SplitName, list[str]], config: LanguageModelling, where: str) -> tuple[dict[SplitName, list[str]], list[str]]:
    """Four splits of whole documents, shares counted in text; copies of a document stay together. Raises BadTask for documents in two given splits."""
    keys = {name: keys_of(documents) for name, documents in given.items()}
    notes = []
    for (first, second), at in shared(keys).items():
        text = f"{len(at):,} of {len(given[second]):,} documents of {second} also occur in {first}"
        if not config.allow_duplicates:
            raise BadTask(
                f"{text}: {', '.join(show(given[second][i]) for i in at[:3])}",
                where=where,
                expected="a document in one split only (text that a model was trained on says nothing about how well it foretells)",
                do="remove them from one of the places, or set `allow_duplicates: true` if you know that they are harmless",
            )
        notes.append(f"{text} (allowed)")
    missing = [name for name in SPLITS if name not in given]
    if not missing:
        return dict(given), notes
    whole = given["train"]
    shares = {name: share for name, share in config.fractions.shares().items() if name == "train" or name in missing}
    owner = np.repeat(np.arange(len(whole)), [-(-len(text) // PIECE) for text in whole])
    units = units_of(len(owner), owner.tolist(), [keys["train"][i] for i in owner])
    rows = split_rows(np.zeros(len(owner), dtype=np.int64), shares, config.seed, units)
    divided = {name: [whole[i] for i in np.unique(owner[at])] for name, at in rows.items()}
    carved = f"{', '.join(missing)} carved out of train" if len(given) > 1 else "splits made here"
    return {**given, **divided}, [*notes, f"{carved}, {len(whole):,} documents kept whole, shares counted in characters"]
