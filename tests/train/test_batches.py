from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadConfig, BadInput, BadTask
from lissome.core.task import Split
from lissome.train.batches import Batches, Ordered, Plain, WindowBatches, ordered, weight
from tests.train.small import loader, number_task, word_task

WORDS = word_task()


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 40), seed=st.integers(0, 5), number=st.integers(0, 3), bucket=st.integers(1, 5), shuffle=st.booleans())
def test_every_example_once_an_epoch(size, seed, number, bucket, shuffle):
    batches = Batches(WORDS, "train", size, seed=seed, bucket=bucket, shuffle=shuffle)
    rows = batches.rows(number)
    assert sorted(np.concatenate(rows)) == list(range(100))
    assert len(rows) == len(batches)
    assert all(1 <= len(part) <= size for part in rows)


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 13), number=st.integers(0, 2))
def test_starting_in_the_middle_gives_the_same_rest(start, number):
    whole = list(Batches(WORDS, "train", 8, seed=1).epoch(number))
    rest = list(Batches(WORDS, "train", 8, seed=1).epoch(number, start))
    assert len(rest) == len(whole) - start
    for a, b in zip(whole[start:], rest, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_order_differs_by_epoch_and_seed_only():
    orders = {str([part.tolist() for part in Batches(WORDS, "train", 8, seed=seed).rows(number)]) for seed in (0, 1) for number in (0, 1) for _ in range(2)}
    assert len(orders) == 4


def test_labels_stay_with_their_inputs():
    for batch in Batches(WORDS, "train", 8):
        has_seven = (batch["input_ids"] == 7).any(dim=1)
        assert torch.equal(has_seven, batch["labels"] == 1)


def test_bucketing_saves_padding():
    def positions(task):
        return sum(batch["input_ids"].numel() for batch in Batches(task, "train", 8))

    shuffled = dataclasses.replace(WORDS, variable_length=False)
    assert positions(WORDS) < 0.75 * positions(shuffled)


def test_lengths_are_tokens_where_there_is_a_mask():
    assert Batches(WORDS, "train").lengths.tolist() == [len(row) for row in WORDS.splits["train"].inputs]


def test_lengths_without_a_mask():
    def collate(rows, padding):
        return {"x": np.zeros((len(rows), 3), np.float32)}

    task = dataclasses.replace(WORDS, collate=collate)
    assert Batches(task, "train").lengths.tolist() == [len(row) for row in WORDS.splits["train"].inputs]


def test_unshuffled_is_in_order():
    assert np.concatenate(Batches(number_task(), "train", 7, shuffle=False).rows(3)).tolist() == list(range(30))


def test_empty_split():
    task = number_task()
    empty = dataclasses.replace(task, splits={**task.splits, "train": Split([], np.array([], dtype=np.int64))})
    with pytest.raises(BadTask, match='the split "train" is empty'):
        Batches(empty, "train")


def test_size_zero():
    with pytest.raises(BadConfig, match="batch size of at least 1"):
        Batches(number_task(), size=0)


def test_an_iterator_is_refused():
    with pytest.raises(BadInput, match=r"read only once(.|\n)*pass list\(batches\)"):
        ordered(iter([1, 2]))
    with pytest.raises(BadInput, match="cannot read batches from int"):
        ordered(3)


def test_plain_loader_starts_in_the_middle():
    plain = ordered(loader())
    assert isinstance(plain, Plain)
    torch.manual_seed(5)
    whole = list(plain.epoch(0))
    torch.manual_seed(5)
    rest = list(plain.epoch(0, 3))
    assert len(rest) == len(whole) - 3 == len(plain) - 3
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[3:], rest, strict=True))


def test_set_epoch_is_called():
    seen = []

    class Loader(list):
        def set_epoch(self, number):
            seen.append(number)

    list(Plain(Loader([1, 2])).epoch(4))
    assert seen == [4]


def test_weight_counts_what_the_mean_is_over():
    assert weight({"x": torch.zeros(5, 2), "labels": torch.tensor([1, -100, 2])}) == 2
    assert weight({"x": torch.zeros(5, 2), "labels": torch.zeros(5)}) == 5
    assert weight((torch.zeros(4, 2), torch.zeros(4))) == 4
    assert weight(torch.zeros(6, 1)) == 6
    assert weight("anything") == 1


def test_windows_in_batches_say_what_comes_next():
    windows = [np.arange(start, start + 6, dtype=np.int32) for start in range(0, 70, 10)]
    batches = WindowBatches(windows, 3, seed=1)
    epochs = [[batch["input_ids"][:, 0].tolist() for batch in batches.epoch(number)] for number in (0, 0, 1)]
    assert len(batches) == 2
    assert epochs[0] == epochs[1] != epochs[2]
    assert len({row for rows in epochs[0] for row in rows}) == 6, "no window twice, and one is left over"
    assert [batch["input_ids"][:, 0].tolist() for batch in batches.epoch(0, 1)] == epochs[0][1:]
    batch = next(batches.epoch(0))
    assert torch.equal(batch["labels"][:, :-1], batch["input_ids"][:, 1:])
    assert (batch["labels"][:, -1] == -100).all()
    assert isinstance(batches, Ordered)
    with pytest.raises(BadConfig, match="7 windows give no batch of 8"):
        WindowBatches(windows, 8)
