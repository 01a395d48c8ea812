from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lissome.core.task import Split
from lissome.data import digits_task, load_task
from lissome.data.fingerprint import data_fingerprint


def test_neither_tokenizer_nor_place_matter(reviews, tokenizer_dir, tmp_path):
    plain = data_fingerprint(load_task(str(reviews)))
    assert data_fingerprint(load_task(str(reviews), tokenizer_dir)) == plain
    other = tmp_path / "moved"
    other.mkdir()
    for path in (reviews, reviews.parent / "reviews.csv"):
        (other / path.name).write_bytes(path.read_bytes())
    assert data_fingerprint(load_task(str(other / "task.yaml"))) == plain


@pytest.mark.parametrize(("old", "new"), [("number 7 ", "number 8 "), ('good film",pos', 'Good film",pos')])
def test_texts_matter_to_the_letter(reviews, old, new):
    rows = reviews.parent / "reviews.csv"
    rows.write_text(rows.read_text().replace("number 7,", "number 7 ,"))
    before = data_fingerprint(load_task(str(reviews)))
    rows.write_text(rows.read_text().replace(old, new, 1))
    assert data_fingerprint(load_task(str(reviews))) != before


def test_labels_and_order_matter():
    task = digits_task()
    before, split = data_fingerprint(task), task.splits["test"]
    assert data_fingerprint(digits_task()) == before
    swapped = np.array(split.targets)
    i, j = 0, int(np.flatnonzero(swapped != swapped[0])[0])
    swapped[[i, j]] = swapped[[j, i]]
    changed = {"labels": Split(split.inputs, swapped), "order": Split(split.inputs[::-1], split.targets)}
    for other in changed.values():
        assert data_fingerprint(replace(task, splits={**task.splits, "test": other})) != before
