"""When two examples are the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lissome.data.duplicates import example_key, keys_of, repeats, shared, show


def test_texts_are_compared_after_normalisation() -> None:
    assert example_key("Well  worth\tthe MONEY ") == example_key("well worth the money")
    assert example_key("ﬁne") == example_key("fine")
    assert example_key("good :)") != example_key("good :(")


def test_parts_do_not_run_together() -> None:
    assert example_key(("a b", "c")) != example_key(("a", "b c"))
    assert example_key(["ab"]) != example_key(["a", "b"])
    assert example_key("1") != example_key(1)


@given(st.lists(st.integers(0, 255), min_size=4, max_size=4), st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_arrays_are_equal_by_bytes_and_shape(a: list[int], b: list[int]) -> None:
    one, two = np.array(a, dtype=np.uint8), np.array(b, dtype=np.uint8)
    assert (example_key(one) == example_key(two)) == (a == b)
    assert example_key(one) != example_key(one.reshape(2, 2))
    assert example_key(one) != example_key(one.astype(np.int16))


def test_counting() -> None:
    keys = {"train": keys_of(["a", "b", "b"]), "test": keys_of(["B", "c", "A"])}
    assert repeats(keys["train"]) == 1
    assert shared(keys) == {("train", "test"): [0, 2]}


def test_showing() -> None:
    assert show("a\nb") == '"a b"'
    assert len(show("x" * 500)) == 62 - 0
    assert show(np.zeros((1, 8, 8))) == "an array of shape (1, 8, 8)"
