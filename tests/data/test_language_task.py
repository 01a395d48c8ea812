"""Language modelling from a task file: documents kept whole, windows, the score, and what a file can get wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import BadConfig, BadTask
from lissome.core.task import SPLITS
from lissome.data import check_task, load_task
from lissome.data.packing import IGNORED
from lissome.data.tasks.language import token_probability

BODY = "kind: language-modelling\ndata: texts\ntokenizer: model\nlength: 16\n"


@pytest.fixture
def texts(write, tokenizer_dir: Path) -> Path:
    """t.yaml over 60 documents; a document's words are told apart by the pair they repeat."""
    (tokenizer_dir / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "[SEP]"}}))
    words = ["review", "number", "good", "bad", "film", "a", "b", "c"]
    for i in range(60):
        write(f"texts/{i:02d}.txt", f"{words[i % 8]} {words[i // 8]} c " * (5 + i % 7 * 4))
    return write("t.yaml", BODY)


def marks(windows) -> set[tuple[int, int]]:
    """The pairs of words that whole documents of a split's windows begin with."""
    stream = np.concatenate(windows)
    begins = [i + 1 for i in np.flatnonzero(stream == 3) if i + 2 < len(stream)]
    return {(int(stream[i]), int(stream[i + 1])) for i in begins}


def test_a_few_lines_of_yaml_suffice(texts):
    task = load_task(str(texts))
    assert (task.kind, task.exact, task.classes, task.variable_length) == ("language-modelling", False, (), False)
    train = task.splits["train"]
    assert all(window.shape == (16,) for window in train.inputs)
    assert train.targets.shape == (len(train), 16)
    assert (train.targets[:, :-1] == np.stack(train.inputs)[:, 1:]).all()
    assert (train.targets[:, -1] == IGNORED).all()
    batch = task.collate(train.inputs[:3], "longest")
    assert list(batch) == ["input_ids"]
    assert batch["input_ids"].dtype == np.int64
    assert batch["input_ids"].shape == (3, 16)
    assert task.notes[0] == "splits made here, 60 documents kept whole, shares counted in characters"
    assert task.notes[1].startswith("train: ")


def test_no_document_lies_in_two_splits_and_shares_are_of_text(texts):
    task = load_task(str(texts))
    found = {name: marks(task.splits[name].inputs) for name in SPLITS}
    assert sum(map(len, found.values())) == len(set().union(*found.values()))
    sizes = task.sizes()
    assert 0.5 < sizes["train"] / sum(sizes.values()) < 0.7
    again = load_task(str(texts))
    assert again.fingerprint == task.fingerprint
    assert all(np.array_equal(again.splits[name].targets, task.splits[name].targets) for name in SPLITS)


def test_copies_of_a_document_stay_together(texts, write):
    for i in range(60):
        write(f"texts/copy{i:02d}.txt", (texts.parent / f"texts/{i:02d}.txt").read_text().upper().lower())
    task = load_task(str(texts))
    found = {name: marks(task.splits[name].inputs) for name in SPLITS}
    assert sum(map(len, found.values())) == len(set().union(*found.values()))


def test_overlap_and_padding(texts):
    texts.write_text(BODY + "stride: 4\nremainder: pad\n")
    task = load_task(str(texts))
    train = task.splits["train"]
    batch = task.collate(train.inputs, "fixed")
    assert list(batch) == ["input_ids", "attention_mask"]
    assert (train.targets != IGNORED).sum() == 15 + 4 * (len(train) - 1) - (16 - batch["attention_mask"][-1].sum())
    assert ((train.targets[:, :-1] != IGNORED) <= (batch["attention_mask"][:, 1:] == 1)).all()


def test_a_file_per_split_and_lines_of_json(texts, write):
    write("train.jsonl", "".join(json.dumps({"body": "good film " * (20 + i)}) + "\n" for i in range(30)))
    write("test.jsonl", "".join(json.dumps({"body": "bad film " * (20 + i)}) + "\n" for i in range(5)))
    texts.write_text(
        "kind: language-modelling\nsplits: {train: [train.jsonl], test: test.jsonl}\ntext: body\ntokenizer: model\nlength: 8\nseparator: '[CLS]'\n"
    )
    task = load_task(str(texts))
    assert set(np.unique(np.concatenate(task.splits["test"].inputs))) == {2, 7, 8}  # bad film, and what stands between documents
    assert 7 not in np.concatenate(task.splits["validation"].inputs)


def test_what_task_check_says(texts):
    found = check_task(load_task(str(texts)))
    assert found.shape == (16,)
    assert found.certifiable_pt is None
    assert found.lengths is None
    assert any(note.startswith("test: ") and "tokens scored" in note for note in found.notes)


@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 1000))
def test_the_score_is_one_over_perplexity(n, length, seed):
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(0, 3, (n, length, 7)), rng.integers(0, 7, (n, length))
    targets[:, -1] = IGNORED
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for i, score in enumerate(token_probability(logits.astype(np.float32), targets)):
        product = np.prod([chances[i, t, targets[i, t]] for t in range(length - 1)])
        assert 0 < score <= 1
        assert score == pytest.approx(product ** (1 / (length - 1)), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "message", "kind"),
    [
        ("kind: language-modelling\ndata: nowhere\ntokenizer: model\n", r"t.yaml:2: .*nowhere. does not exist", BadTask),
        ("kind: language-modelling\ndata: texts\n", "text cannot be cut into tokens without a tokenizer", BadTask),
        ("kind: language-modelling\ndata: texts\ntokenizer: texts\n", "there is no tokenizer.json", BadTask),
        (BODY + "stride: 17\n", "a stride of 17 would leave out tokens between windows of 16", BadConfig),
        (BODY + "separator: '<eos>'\n", r't.yaml:5: the tokenizer has no token "<eos>"', BadTask),
        (BODY.replace("16", "4000"), "split has no window: its .* documents hold fewer than 4,000 tokens", BadTask),
        (BODY.replace("16", "1"), r"t.yaml:4: ", BadConfig),
        (BODY.replace("data: texts\n", ""), "give either `data:`", BadConfig),
        (BODY.replace("data: texts", "splits: {test: texts}"), "`splits:` needs at least `train`", BadConfig),
        (BODY + "label: x\n", 't.yaml:5: unknown key "label"', BadConfig),
        (BODY.replace("data: texts", "splits: {train: texts, test: texts/01.txt}"), "1 of 1 documents of test also occur in train", BadTask),
    ],
)
def test_what_a_file_can_get_wrong(texts, text, message, kind):
    texts.write_text(text)
    with pytest.raises(kind, match=message):
        load_task(str(texts))


def test_a_tokenizer_that_names_no_end(texts):
    (texts.parent / "model" / "tokenizer_config.json").unlink()
    with pytest.raises(BadTask, match="names no token that ends a text"):
        load_task(str(texts))
