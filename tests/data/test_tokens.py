"""Texts to batches: which inputs, how they are padded, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lissome.core.errors import BadTask
from lissome.data.tokens import load_tokens


def configure(folder: Path, name: str = "config.json", **values: object) -> None:
    path = folder / name
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(held | values))


def test_a_batch_has_the_models_inputs_in_order(tokenizer_dir: Path) -> None:
    tokens = load_tokens(tokenizer_dir, "t")
    batch = tokens.collate(["a b c", "a"], "longest")
    assert list(batch) == ["input_ids", "attention_mask", "token_type_ids"]
    assert batch["input_ids"].tolist() == [[2, 9, 10, 11, 3], [2, 9, 3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0] * 5] * 2
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}


def test_pairs_have_types(tokenizer_dir: Path) -> None:
    batch = load_tokens(tokenizer_dir, "t").collate([("a", "b")], "longest")
    assert batch["input_ids"].tolist() == [[2, 9, 3, 10, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]


@pytest.mark.parametrize(("padding", "width"), [("longest", 19), ("multiple-of-16", 24), ("fixed", 24)])
def test_paddings(tokenizer_dir: Path, padding: str, width: int) -> None:
    tokens = load_tokens(tokenizer_dir, "t", max_length=24)
    batch = tokens.collate(["a " * 17, "a"], padding)
    assert {array.shape for array in batch.values()} == {(2, width)}
    assert tokens.collate(["a"], "multiple-of-16")["input_ids"].shape == (1, 16)


def test_the_tasks_limit_cuts_and_the_files_own_does_not(tokenizer_dir: Path) -> None:
    assert load_tokens(tokenizer_dir, "t").collate(["a " * 100], "longest")["input_ids"].shape == (1, 32)
    assert load_tokens(tokenizer_dir, "t", max_length=8).collate(["a " * 100], "longest")["input_ids"].shape == (1, 8)


def test_what_is_remembered_equals_what_is_not(tokenizer_dir: Path) -> None:
    tokens = load_tokens(tokenizer_dir, "t")
    texts = ["a b", "good film", "a b"]
    fresh = tokens.collate(texts, "longest")
    assert not tokens.known
    tokens.remember(texts)
    again = tokens.collate(texts, "longest")
    assert set(tokens.known) == set(texts)
    assert all((fresh[name] == again[name]).all() for name in fresh)


@pytest.mark.parametrize(
    ("config", "settings", "expected"),
    [
        ({"model_type": "distilbert", "type_vocab_size": None}, {}, 2),
        ({"model_type": "roberta", "type_vocab_size": 1}, {}, 2),
        ({"type_vocab_size": 2}, {"model_input_names": ["input_ids", "attention_mask"]}, 2),
        ({"type_vocab_size": 2}, {}, 3),
    ],
)
def test_token_types_only_where_the_model_takes_them(tokenizer_dir: Path, config: dict, settings: dict, expected: int) -> None:
    configure(tokenizer_dir, **config)
    configure(tokenizer_dir, "tokenizer_config.json", **settings)
    assert len(load_tokens(tokenizer_dir, "t").inputs) == expected


def test_inputs_can_be_named(tokenizer_dir: Path) -> None:
    batch = load_tokens(tokenizer_dir, "t", inputs=("attention_mask", "input_ids")).collate(["a"], "longest")
    assert list(batch) == ["attention_mask", "input_ids"]


def test_the_pad_token_is_found_where_the_tokenizer_does_not_say(tokenizer_dir: Path) -> None:
    path = tokenizer_dir / "tokenizer.json"
    held = json.loads(path.read_text()) | {"padding": None}
    path.write_text(json.dumps(held))
    configure(tokenizer_dir, "tokenizer_config.json", pad_token={"content": "c"})
    assert load_tokens(tokenizer_dir, "t").pad_id == 11
    (tokenizer_dir / "tokenizer_config.json").unlink()
    configure(tokenizer_dir, pad_token_id=7)
    assert load_tokens(tokenizer_dir, "t").pad_id == 7
    configure(tokenizer_dir, pad_token_id=None)
    assert load_tokens(tokenizer_dir, "t").pad_id == 0  # [PAD] in the vocabulary
    del held["model"]["vocab"]["[PAD]"]
    path.write_text(json.dumps(held))
    with pytest.raises(BadTask, match="has no padding token"):
        load_tokens(tokenizer_dir, "t")


def test_longer_than_the_model_is_refused(tokenizer_dir: Path) -> None:
    with pytest.raises(BadTask, match=r"task.yaml:4: `max_length` is 64, the model has 32 positions"):
        load_tokens(tokenizer_dir, "task.yaml:4", max_length=64)
    configure(tokenizer_dir, model_type="roberta", pad_token_id=1)
    assert load_tokens(tokenizer_dir, "t").length == 30


def test_a_folder_without_a_tokenizer_and_a_broken_one(tokenizer_dir: Path) -> None:
    (tokenizer_dir / "tokenizer.json").write_text("{")
    with pytest.raises(BadTask, match="the tokenizer cannot be read"):
        load_tokens(tokenizer_dir, "t")
    (tokenizer_dir / "tokenizer.json").unlink()
    with pytest.raises(BadTask, match=r"there is no tokenizer.json") as caught:
        load_tokens(tokenizer_dir, "t")
    assert "save_pretrained" in str(caught.value)


def test_the_fingerprint_depends_on_file_and_settings(tokenizer_dir: Path) -> None:
    one = load_tokens(tokenizer_dir, "t").fingerprint
    assert one == load_tokens(tokenizer_dir, "t").fingerprint
    assert one != load_tokens(tokenizer_dir, "t", max_length=8).fingerprint


def test_no_torch_and_no_transformers_are_imported(reviews: Path, tokenizer_dir: Path) -> None:
    import subprocess

    code = (
        "import sys, pathlib; from lissome.data import load_task, check_task; "
        f"t = load_task({str(reviews)!r}, pathlib.Path({str(tokenizer_dir)!r})); t.collate(t.splits['test'].inputs[:2], 'fixed'); check_task(t); "
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
