"""Label order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import BadTask
from lissome.data.labels import class_ids, class_order


@given(st.lists(st.text(min_size=1), min_size=2, unique=True), st.randoms())
def test_the_order_does_not_depend_on_the_rows(names: list[str], random) -> None:
    shuffled = random.sample(names, len(names))
    classes = class_order(names, None, "t")
    assert classes == class_order(shuffled * 2, None, "t")
    assert [classes[i] for i in class_ids(shuffled, classes)] == shuffled


def test_numbers_sort_as_numbers() -> None:
    assert class_order(["10", "9", "-1"], None, "t") == ("-1", "9", "10")
    assert class_order(["10", "9", "x"], None, "t") == ("10", "9", "x")


def test_refusals() -> None:
    with pytest.raises(BadTask, match=r't.yaml:3: the only label is "a"'):
        class_order(["a", "a"], None, "t.yaml:3")
    with pytest.raises(BadTask, match=r'the label "positve" is not in `classes`. Did you mean "positive"\?'):
        class_order(["positve"], ("negative", "positive"), "t")
