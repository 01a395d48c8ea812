"""Fixtures of the data room: small files, a small tokenizer, a real registry where one answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lissome.core.cache import Cache
from lissome.core.errors import Unreachable
from lissome.data.sources import fetch


@pytest.fixture(autouse=True)
def _no_local_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISSOME_SOURCES", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """write("a/b.csv", text) under the test's own folder."""

    def put(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return put


@pytest.fixture
def reviews(write: Callable[[str, str], Path]) -> Path:
    """task.yaml over 200 reviews in reviews.csv, two classes."""
    rows = "".join(f'{i},"review number {i}, {"good" if i % 2 else "bad"} film",{"pos" if i % 2 else "neg"}\n' for i in range(200))
    write("reviews.csv", "id,text,sentiment\n" + rows)
    return write("task.yaml", "kind: text-classification\ndata: reviews.csv\nlabel: sentiment\n")


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    """A folder as a small BERT would have it: word-level tokenizer, [CLS] a [SEP] b [SEP], 32 positions."""
    import tokenizers
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path / "model"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["review", "number", "good", "bad", "film", "a", "b", "c"]]
    made = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.enable_truncation(5)  # as published files often have it: the task's own limit must win
    made.enable_padding(length=128, pad_id=0, pad_token="[PAD]")
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "type_vocab_size": 2, "max_position_embeddings": 32}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Cache]]:
    """fetched(name) really fetches a source, once a session; skips when no registry answers, except where CI=true."""
    cache = Cache(tmp_path_factory.mktemp("fetched"))

    def get(name: str) -> tuple[Path, Cache]:
        try:
            return fetch(name, cache), cache
        except Unreachable as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"no registry answers: {error.what}")

    return get
