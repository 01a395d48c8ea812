"""Invariants of the splits: a partition, proportional strata, whole groups, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.task import SPLITS
from lissome.data.splitting import Fractions, split_rows, units_of

SHARES = Fractions().shares()
shares = st.tuples(*[st.floats(0.05, 1)] * 4).map(lambda v: dict(zip(SPLITS, v, strict=True)))
labels = st.lists(st.integers(0, 4), min_size=1, max_size=300)


def flat(splits: dict) -> list[int]:
    return sorted(i for at in splits.values() for i in at.tolist())


@given(labels=labels, shares=shares, seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_singles_are_a_proportional_partition(labels: list[int], shares: dict, seed: int) -> None:
    splits = split_rows(labels, shares, seed)
    assert flat(splits) == list(range(len(labels)))
    total = sum(shares.values())
    counts = Counter(labels)
    for name in SPLITS:
        here = Counter(labels[i] for i in splits[name])
        for label, n in counts.items():
            # one row of rounding, one carried over, one that train may be given for a class it would lack
            assert abs(here[label] - n * shares[name] / total) <= 3
        assert abs(len(splits[name]) - len(labels) * shares[name] / total) <= 1 + len(counts)
    assert {labels[i] for i in splits["train"]} == set(labels)


@given(data=st.data(), n=st.integers(1, 200), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_groups_and_copies_never_cross(data: st.DataObject, n: int, seed: int) -> None:
    groups = data.draw(st.lists(st.one_of(st.none(), st.integers(0, 15)), min_size=n, max_size=n))
    keys = data.draw(st.lists(st.integers(0, 60), min_size=n, max_size=n))
    strata = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    splits = split_rows(strata, SHARES, seed, units_of(n, groups, keys))
    assert flat(splits) == list(range(n))
    where = {i: name for name, at in splits.items() for i in at.tolist()}
    for values in (groups, keys):
        seen: dict = {}
        for i, value in enumerate(values):
            if value is not None:
                assert seen.setdefault(value, where[i]) == where[i]


@given(labels=labels, seed=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_the_same_seed_gives_the_same_splits(labels: list[int], seed: int) -> None:
    one, two = split_rows(labels, SHARES, seed), split_rows(labels, SHARES, seed)
    assert all((one[name] == two[name]).all() for name in SPLITS)


def test_another_seed_gives_others() -> None:
    one, two = (split_rows([0, 1] * 100, SHARES, seed) for seed in (0, 1))
    assert one["test"].tolist() != two["test"].tolist()


@given(sizes=st.lists(st.integers(1, 12), min_size=200, max_size=300), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_groups_stay_near_the_shares_and_the_strata(sizes: list[int], seed: int) -> None:
    units = np.repeat(np.arange(len(sizes)), sizes)
    strata = np.random.default_rng(seed).integers(0, 2, len(units))
    splits = split_rows(strata, SHARES, seed, units)
    for name, share in SHARES.items():
        assert abs(len(splits[name]) / len(units) - share) < 0.01
        assert abs(strata[splits[name]].mean() - strata.mean()) < 0.08


def test_links_chain_through_groups_and_copies() -> None:
    assert units_of(5, ["a", "a", "b", None, None], [1, 2, 2, 3, 3]).tolist() == [0, 0, 0, 1, 1]


def test_many_small_classes_still_fill_the_small_split() -> None:
    labels = [i // 4 for i in range(400)]
    splits = split_rows(labels, SHARES, 0)
    assert 15 <= len(splits["calibration"]) <= 25
    assert {labels[i] for i in splits["train"]} == set(labels)


@pytest.mark.parametrize("bad", [{"test": 0.5}, {"train": 0.9}, {"test": 0.0}, {"train": -1}])
def test_fractions_that_do_not_sum_to_one(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"sum to 1|greater than"):
        Fractions(**bad)
