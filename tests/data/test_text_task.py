"""Text classification from a task file, and everything that a task file can get wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from lissome.core.errors import BadConfig, BadInput, BadTask
from lissome.core.task import SPLITS
from lissome.data import load_task


def csv(n: int, first: int = 0, label=lambda i: "pos" if i % 2 else "neg") -> str:
    return "text,label\n" + "".join(f"text {i},{label(i)}\n" for i in range(first, first + n))


def refused(path: Path, message: str, kind: type[BadInput] = BadTask) -> str:
    with pytest.raises(kind, match=message) as caught:
        load_task(str(path))
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_three_lines_of_yaml_suffice(reviews: Path, tokenizer_dir: Path) -> None:
    task = load_task(str(reviews), model_dir=tokenizer_dir)
    assert task.kind == "text-classification"
    assert task.name == "task"
    assert task.ref == str(reviews)
    assert task.classes == ("neg", "pos")
    assert task.sizes() == {"train": 120, "calibration": 10, "validation": 30, "test": 40}
    assert task.exact
    assert task.variable_length
    test = task.splits["test"]
    for text, target in zip(test.inputs, test.targets, strict=True):
        assert ("good" in text) == (target == 1)
    batch = task.collate(test.inputs[:5], "longest")
    assert list(batch) == ["input_ids", "attention_mask", "token_type_ids"]
    assert batch["input_ids"].shape[0] == 5
    assert task.score(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1, 1])).tolist() == [1.0, 0.0]
    assert task.parse is not None
    assert task.collate([task.parse("a good film")], "longest")["input_ids"].tolist() == [[2, 9, 6, 8, 3]]


def test_splits_are_a_partition_and_stable(reviews: Path) -> None:
    one, two = load_task(str(reviews)), load_task(str(reviews))
    every = [text for name in SPLITS for text in one.splits[name].inputs]
    assert len(set(every)) == len(every) == 200
    assert all(one.splits[name].inputs == two.splits[name].inputs for name in SPLITS)
    assert one.fingerprint == two.fingerprint


def test_the_fingerprint_covers_data_and_settings_but_not_the_place(reviews: Path, tmp_path: Path) -> None:
    base = load_task(str(reviews)).fingerprint
    other = tmp_path / "elsewhere"
    other.mkdir()
    for path in (reviews, reviews.parent / "reviews.csv"):
        (other / path.name).write_bytes(path.read_bytes())
    assert load_task(str(other / "task.yaml")).fingerprint == base
    data = other / "reviews.csv"
    data.write_text(data.read_text().replace("number 7,", "number seven,"))
    assert load_task(str(other / "task.yaml")).fingerprint != base
    reviews.write_text(reviews.read_text() + "seed: 1\n")
    assert load_task(str(reviews)).fingerprint != base


def test_without_a_tokenizer_it_can_be_looked_at_but_not_batched(reviews: Path) -> None:
    task = load_task(str(reviews))
    with pytest.raises(BadTask, match="cannot be batched without a tokenizer") as caught:
        task.collate(["a"], "longest")
    assert "tokenizer: FOLDER" in str(caught.value)


def test_a_tokenizer_named_in_the_file_wins(reviews: Path, tokenizer_dir: Path) -> None:
    reviews.write_text(reviews.read_text() + f"tokenizer: {tokenizer_dir.name}\nmax_length: 4\n")
    assert load_task(str(reviews)).collate(["a b c"], "fixed")["input_ids"].tolist() == [[2, 9, 10, 3]]


def test_whole_number_labels_sort_by_number_and_classes_can_be_given(write) -> None:
    write("a.csv", csv(120, label=lambda i: [10, 9, 2][i % 3]))
    assert load_task(str(write("t.yaml", "kind: text-classification\ndata: a.csv\n"))).classes == ("2", "9", "10")
    task = load_task(str(write("t.yaml", "kind: text-classification\ndata: a.csv\nclasses: [10, 9, 2]\n")))
    assert task.classes == ("10", "9", "2")
    assert all(target == int(text.split()[1]) % 3 for text, target in zip(task.splits["test"].inputs, task.splits["test"].targets, strict=True))
    assert 't.yaml:3: the label "10" is not in `classes`' in refused(write("t.yaml", "kind: text-classification\ndata: a.csv\nclasses: [1, 9, 2]\n"), "not in")


def test_groups_stay_whole_and_copies_stay_together(write) -> None:
    rows = "".join(f"text {i // 2},{'pos' if (i // 2) % 2 else 'neg'},{i // 10}\n" for i in range(600))
    write("a.csv", "text,label,review\n" + rows)
    task = load_task(str(write("t.yaml", "kind: text-classification\ndata: a.csv\ngroup: review\n")))
    seen: dict[int, set[str]] = {}
    for name in SPLITS:
        for text in task.splits[name].inputs:
            seen.setdefault(int(text.split()[1]) // 5, set()).add(name)
    assert len(seen) == 60
    assert all(len(names) == 1 for names in seen.values())
    assert "60 groups kept whole; 300 repeated examples" in task.notes[0]


def test_a_file_per_split_and_the_rest_carved_out_of_train(write) -> None:
    write("train.csv", csv(200))
    write("test.jsonl", "".join(f'{{"text": "other {i}", "label": "{"pos" if i % 2 else "neg"}"}}\n' for i in range(50)))
    task = load_task(str(write("t.yaml", "kind: text-classification\nsplits: {train: train.csv, test: test.jsonl}\n")))
    assert task.sizes() == {"train": 150, "calibration": 13, "validation": 37, "test": 50}
    assert list(task.splits["test"].inputs) == [f"other {i}" for i in range(50)]


def test_pairs(write, tokenizer_dir: Path) -> None:
    write("a.tsv", "one\ttwo\tlabel\n" + "".join(f"a {i}\tb\t{i % 2}\n" for i in range(60)))
    task = load_task(str(write("t.yaml", "kind: text-classification\ndata: a.tsv\ntext: one\ntext_pair: two\n")), tokenizer_dir)
    assert task.splits["test"].inputs[0][1] == "b"
    assert task.parse is not None
    assert task.parse('["a", "b"]') == ("a", "b")
    with pytest.raises(BadInput, match="takes a pair"):
        task.parse("a")


# What a task file can get wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: text-clasification\ndata: a.csv\n", r't.yaml:1: "kind": there is no such kind of task. Did you mean "text-classification"\?'),
        ("data: a.csv\n", r't.yaml: the key "kind" is missing'),
        ("kind: text-classification\ndata: a.csv\nlable: x\n", r't.yaml:3: unknown key "lable". Did you mean "label"\?'),
        ("kind: text-classification\nfractions:\n  trian: 0.5\ndata: a.csv\n", r't.yaml:3: unknown key "fractions.trian". Did you mean "train"\?'),
        ("kind: text-classification\ndata: a.csv\nfractions:\n  test: 0.5\n", r"t.yaml:3: .*the fractions must sum to 1"),
        ("kind: text-classification\n", "give either `data:`"),
        ("kind: text-classification\ndata: a.csv\nsplits: {train: a.csv}\n", "give either `data:`"),
        ("kind: text-classification\nsplits: {test: a.csv}\n", "`splits:` needs at least `train`"),
        ("kind: text-classification\nsplits: {train: a.csv, tset: b.csv}\n", r"t.yaml:2: "),
        ("kind: text-classification\ndata: a.csv\nmax_length: 1\n", r"t.yaml:3: "),
        ("kind: text-classification\ndata: [a.csv\n", r"t.yaml:\d: not valid YAML"),
        ("- kind\n", "t.yaml:1: expected keys and values"),
    ],
)
def test_wrong_keys_are_named_with_their_line(write, text: str, message: str) -> None:
    refused(write("t.yaml", text), message, BadConfig)


def test_a_label_column_that_is_not_there(reviews: Path) -> None:
    reviews.write_text("kind: text-classification\ndata: reviews.csv\n\nlabel: sentimnt\n")
    text = refused(reviews, r'label column "sentimnt" is not in reviews.csv. Did you mean "sentiment"\?')
    assert re.search(r"task\.yaml:4: ", text)
    assert "id, text, sentiment" in text


@pytest.mark.parametrize("key", ["text", "text_pair", "group", "stratify"])
def test_other_columns_that_are_not_there(reviews: Path, key: str) -> None:
    reviews.write_text(reviews.read_text() + f"{key}: nowhere\n")
    refused(reviews, rf'task.yaml:4: {key} column "nowhere" is not in reviews.csv')


def test_a_missing_task_and_a_missing_data_file(write, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.yaml", "cannot read it: No such file", BadConfig)
    refused(tmp_path, "is a folder")
    refused(write("t.yaml", "kind: text-classification\ndata: nowhere.csv\n"), r"t.yaml:2: the file .*nowhere.csv. does not exist")
    with pytest.raises(BadTask, match=r"neither a file nor package.module:function"):
        load_task("sentiment")


def test_an_empty_file(write) -> None:
    write("a.csv", "text,label\n")
    refused(write("t.yaml", "kind: text-classification\ndata: a.csv\n"), "a.csv: it has no rows")


def test_a_single_class(write) -> None:
    write("a.csv", csv(50, label=lambda i: "pos"))
    refused(write("t.yaml", "kind: text-classification\ndata: a.csv\n"), r'the only label is "pos"')


def test_an_empty_split_and_a_split_of_one_class(write) -> None:
    path = write("t.yaml", "kind: text-classification\ndata: a.csv\n")
    write("a.csv", csv(4))
    assert "there are 4 in all" in refused(path, "the calibration split is empty")
    write("train.csv", csv(100))
    write("test.csv", csv(20, first=500, label=lambda i: "pos"))
    path = write("t.yaml", "kind: text-classification\nsplits: {train: train.csv, test: test.csv}\n")
    refused(path, 'all 20 examples of the test split have the class "pos"')


def test_missing_labels_are_named_by_line(write) -> None:
    write("a.csv", csv(20).replace("text 3,pos", "text 3,").replace("text 9,pos", "text 9, "))
    refused(write("t.yaml", "kind: text-classification\ndata: a.csv\n"), 'a.csv lines 5, 11: 2 rows have no label in the column "label"')


def test_free_text_as_label(write) -> None:
    write("a.csv", csv(100, label=lambda i: f"free {i}"))
    refused(write("t.yaml", "kind: text-classification\ndata: a.csv\n"), 'the label column "label" has 100 different values in 100 rows')


def test_a_class_that_train_lacks(write) -> None:
    write("train.csv", csv(100))
    write("test.csv", csv(30, first=500, label=lambda i: ["neg", "pos", "mixed"][i % 3]))
    refused(write("t.yaml", "kind: text-classification\nsplits: {train: train.csv, test: test.csv}\n"), 'the test split has classes that train lacks: "mixed"')


def test_rows_shared_between_given_splits(write) -> None:
    write("train.csv", csv(100))
    write("test.csv", csv(40, first=90).replace("text 95", "TEXT  95"))
    body = "kind: text-classification\nsplits: {train: train.csv, test: test.csv}\n"
    text = refused(write("t.yaml", body), '10 of 40 test examples also occur in train: "text 90", "text 91", "text 92"')
    assert "allow_duplicates: true" in text
    task = load_task(str(write("t.yaml", body + "allow_duplicates: true\n")))
    assert "10 of 40 test examples also occur in train (allowed)" in task.notes


def test_a_broken_tokenizer_folder(reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(BadTask, match=r"there is no tokenizer.json"):
        load_task(str(reviews), model_dir=tmp_path)
