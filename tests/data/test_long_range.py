"""Generated tasks: what the answer depends on, sizes, seeds; a rule that knows the trick gets everything right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadConfig
from lissome.core.task import SPLITS
from lissome.data import check_task
from lissome.data.long_range import (
    DECOY,
    FIRST,
    IGNORED,
    MARKER,
    SYMBOLS,
    all_foretold,
    matching,
    matching_task,
    mqar,
    mqar_task,
    needle,
    needle_task,
    passkey,
    passkey_task,
    share_foretold,
)


@pytest.fixture(scope="module")
def tokenizer():
    """Letters, digits and marks, one token each; nothing around a text."""
    import string

    import tokenizers
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    made = tokenizers.Tokenizer(WordLevel({c: i for i, c in enumerate(string.printable)}, unk_token=" "))
    made.pre_tokenizer = Split(tokenizers.Regex("."), "isolated")
    return made


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(0, 60), st.integers(0, 1000))
def test_a_lookup_solves_associative_recall(pairs, more, seed):
    length, vocabulary = 4 * pairs + more, 200
    ids, targets = mqar(5, length, pairs, vocabulary, seed)
    assert ids.shape == targets.shape == (5, length)
    assert ids.min() >= 1 and ids.max() < vocabulary
    assert ((targets != IGNORED).sum(1) == pairs).all()
    assert (targets[:, : 2 * pairs] == IGNORED).all()
    for row, wanted in zip(ids, targets, strict=True):
        known = dict(zip(row[0 : 2 * pairs : 2].tolist(), row[1 : 2 * pairs : 2].tolist(), strict=True))
        assert len(known) == pairs
        assert all(wanted[place] == known[int(row[place])] for place in np.flatnonzero(wanted != IGNORED))
    assert np.array_equal(ids, mqar(5, length, pairs, vocabulary, seed)[0])
    assert not np.array_equal(ids, mqar(5, length, pairs, vocabulary, seed + 1)[0])


@settings(max_examples=25, deadline=None)
@given(length=st.integers(420, 900), depth=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_passkey_stands_where_it_should_and_is_asked_for_at_the_end(tokenizer, length, depth, seed):
    ids, targets = passkey(tokenizer, length, depth, seed)
    text = "".join(tokenizer.id_to_token(int(i)) for i in ids)
    assert len(ids) == len(targets) == length
    key = text[-6:-1]
    assert key.isdigit() and text.count(key) == 3
    asked = np.flatnonzero(targets != IGNORED)
    assert "".join(tokenizer.id_to_token(int(i)) for i in targets[asked]) == key
    assert (asked == np.arange(length - 7, length - 2)).all()
    begin = text.index(" The pass key is")
    room = text.rindex(" What is") - len(f" The pass key is {key}. Remember it. {key} is the pass key.")
    opening = text.index("there.") + len("there.")
    assert abs((begin - opening) - depth * (room - opening)) <= 22  # whole sentences
    assert np.array_equal(ids, passkey(tokenizer, length, depth, seed)[0])


@settings(max_examples=25)
@given(st.integers(2, 60), st.integers(0, 40), st.integers(2, 9), st.integers(0, 6), st.integers(0, 1000))
def test_a_comparison_solves_matching_and_the_markers_are_far_apart(apart, more, symbols, distractors, seed):
    length = apart + 2 * distractors + 8 + more
    ids, labels = matching(6, length, apart, symbols=symbols, distractors=distractors, vocabulary=20, seed=seed)
    assert ids.shape == (6, length)
    assert labels.sum() == 3
    assert (ids[:, 0] == FIRST).all()
    for row, label in zip(ids, labels, strict=True):
        places = np.flatnonzero(row == MARKER)
        assert len(places) == 2
        assert places[1] - places[0] >= apart
        assert (row == DECOY).sum() == distractors
        assert (row[places[0] + 1] == row[places[1] + 1]) == bool(label)
    assert np.array_equal(ids, matching(6, length, apart, symbols=symbols, distractors=distractors, vocabulary=20, seed=seed)[0])


@given(length=st.integers(2, 60), data=st.data(), symbols=st.integers(2, 5), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_needle_stands_once_far_from_the_first_token(length, data, symbols, seed):
    apart = data.draw(st.integers(1, length - 1))
    ids, labels = needle(12, length, apart, symbols=symbols, vocabulary=20, seed=seed)
    found = (ids >= SYMBOLS) & (ids < SYMBOLS + symbols)
    assert (ids[:, 0] == FIRST).all()
    assert (found.sum(1) == 1).all()
    assert (found.argmax(1) >= apart).all()
    assert np.array_equal(ids[found] - SYMBOLS, labels)
    assert np.bincount(labels, minlength=symbols).max() - np.bincount(labels, minlength=symbols).min() <= 1


def test_half_of_a_matching_text_says_nothing():
    ids, labels = matching(4000, 64, 32, symbols=4)
    first = np.array([row[np.flatnonzero(row == MARKER)[0] + 1] for row in ids])
    for symbol in np.unique(first):
        assert abs(labels[first == symbol].mean() - 0.5) < 0.08


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mqar(1, 30, 10), "10 pairs do not fit into 30 tokens"),
        (lambda: mqar(1, 100, 10, 20), "10 pairs do not fit into 100 tokens of 20 kinds"),
        (lambda: needle(1, 64, 64), "64 places from the first does not fit into 64 tokens"),
        (lambda: needle(1, 64, 8, symbols=1), "with 1 symbols"),
        (lambda: matching(1, 64, 63), "markers 63 places apart"),
        (lambda: matching(1, 64, 8, distractors=30), "30 distractors do not fit"),
        (lambda: matching(1, 64, 8, symbols=300), "with 300 symbols"),
    ],
)
def test_sizes_that_do_not_fit(call, message):
    with pytest.raises(BadConfig, match=message):
        call()


def test_a_passkey_that_does_not_fit(tokenizer):
    with pytest.raises(BadConfig, match="100 tokens are too few for a passkey"):
        passkey(tokenizer, 100, 0.5)
    with pytest.raises(BadConfig, match="a depth of 2 lies outside"):
        passkey(tokenizer, 900, 2)


def test_as_tasks(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sizes = {"train": 6, "calibration": 2, "validation": 4, "test": 4}
    made = [
        mqar_task(64, 8, 128, sizes),
        passkey_task(tmp_path, 500, (0.2, 0.8), sizes),
        matching_task(64, 32, sizes=sizes),
        needle_task(64, 32, sizes=sizes),
    ]
    for task in made:
        assert task.sizes() == sizes
        batch = task.collate(task.splits["test"].inputs[:2], "longest")
        assert batch["input_ids"].shape == (2, len(task.splits["test"].inputs[0]))
        assert check_task(task).across == ()
        assert len({row.tobytes() for name in SPLITS for row in task.splits[name].inputs}) == sum(sizes.values())
    assert len({task.fingerprint for task in made}) == len(made)
    assert mqar_task(64, 8, 128, sizes).fingerprint == made[0].fingerprint
    assert mqar_task(64, 8, 128, sizes, seed=1).fingerprint != made[0].fingerprint
    answers = made[1].splits["test"].targets
    right = np.eye(100)[np.where(answers == IGNORED, 0, answers)]
    assert made[1].score(right, answers).tolist() == [1, 1, 1, 1]
    wrong = right.copy()
    wrong[0, np.flatnonzero(answers[0] != IGNORED)[2]] = np.eye(100)[99]
    assert made[1].score(wrong, answers).tolist() == [0, 1, 1, 1] == all_foretold(wrong, answers).tolist()
    assert share_foretold(wrong, answers).tolist() == [0.8, 1, 1, 1]
