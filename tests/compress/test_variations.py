"""Texts that are altered for a student: what may change, what must not, and that a run can go on in the middle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.compress.distill.variations import IGNORED, Varied, varied
from lissome.core.errors import BadInput
from lissome.train.batches import Plain

BEGIN, END = 2, 3


def batch(seed: int, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Texts of unequal length between a first and a last token, padded with 0; the words of row r are 100 r + 10 and above."""
    rng = np.random.default_rng(seed)
    ids, mask = torch.zeros(rows, length, dtype=torch.long), torch.zeros(rows, length, dtype=torch.long)
    for r in range(rows):
        n = int(rng.integers(2, length + 1))
        words = [100 * r + 10 + int(one) for one in rng.integers(80, size=n - 2)]
        ids[r, :n], mask[r, :n] = torch.tensor([BEGIN, *words, END]), 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.from_numpy(rng.integers(2, size=rows))}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), length=st.integers(2, 20), share=st.floats(0, 1))
def test_altered_texts_are_texts_of_the_batchs_tokens(seed, rows, length, share):
    given_, rng = batch(seed, rows, length), np.random.default_rng(seed)
    kept = {name: value.clone() for name, value in given_.items()}
    found = varied(given_, share, rng)
    assert all((given_[name] == kept[name]).all() for name in kept)  # the batch itself stays
    ids, mask = found["input_ids"], found["attention_mask"]
    assert set(ids.flatten().tolist()) <= set(given_["input_ids"].flatten().tolist())
    ends = mask.sum(1) - 1
    assert (ids[:, 0] == BEGIN).all()
    assert (ids[torch.arange(rows), ends] == END).all()
    assert ((ids == END).sum(1) == 1).all()  # one end, and nothing behind it
    assert (ids[~mask.bool()] == 0).all()
    whole = found["labels"] != IGNORED
    assert whole.any()
    for row in whole.nonzero().flatten().tolist():
        assert (ids[row] == given_["input_ids"][row]).all()


def test_they_differ_from_epoch_to_epoch_and_not_from_run_to_run():
    plain = Plain([batch(i, 8, 16) for i in range(4)])
    first, again, other = Varied(plain, 0.7), Varied(plain, 0.7), Varied(plain, 0.7, seed=1)
    assert len(first) == 4

    def ids(batches: Varied, epoch: int, start: int = 0) -> list[list[list[int]]]:
        return [one["input_ids"].tolist() for one in batches.epoch(epoch, start)]

    assert ids(first, 3) == ids(again, 3)
    assert ids(first, 3)[2:] == ids(again, 3, start=2)
    assert ids(first, 3) != ids(first, 4)
    assert ids(first, 3) != ids(other, 3)


def test_only_token_ids_can_be_altered():
    with pytest.raises(BadInput, match=r"variations are made of token ids with an attention mask.*\n.*set variations to 0"):
        varied({"images": torch.zeros(2, 3)}, 0.5, np.random.default_rng(0))
