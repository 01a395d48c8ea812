"""The algebra of axes against the plain thing: an array in which every index is written down."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lissome.compress.prune.axes import Axis, concatenation, factors, labels, product, reshape, segments, unify

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@st.composite
def shapes(draw):
    """Two shapes of as many elements: one is cut into primes, which are put together in another way."""
    primes = draw(st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=5))

    def grouped():
        out, at = [], 0
        while at < len(primes):
            step = draw(st.integers(1, len(primes) - at))
            out.append(math.prod(primes[at : at + step]))
            at += step
        return out

    return grouped(), grouped()


@given(case=shapes())
def test_reshape_follows_every_index(case):
    before, after = case
    axes = [Axis(size) for size in before]
    seen = reshape(axes, after)
    assert [axis.size for axis in seen] == after
    index = np.indices(before).reshape(len(before), -1)  # of each element, where it was
    place = np.indices(after).reshape(len(after), -1)  # and where it is
    for was, axis in zip(index, axes, strict=True):
        for leaf in axis.leaves():
            marks = labels(axis, leaf)
            expected = marks[was]
            found = np.full(len(expected), -1)
            for now, new in zip(place, seen, strict=True):
                found = np.maximum(found, labels(new, leaf)[now])
            if leaf.size > 1:
                assert np.array_equal(found, expected)


@given(outer=st.integers(1, 5), middle=st.integers(1, 5), inner=st.integers(1, 5))
def test_labels_of_a_product(outer, middle, inner):
    leaf = Axis(middle)
    whole = product([Axis(outer), leaf, Axis(inner)])
    expected = np.indices((outer, middle, inner))[1].reshape(-1)
    assert np.array_equal(labels(whole, leaf) if middle > 1 else expected, expected)


@given(sizes=SIZES, at=st.integers(0, 3))
def test_labels_of_a_concatenation(sizes, at):
    parts = [Axis(size) for size in sizes]
    leaf = parts[at % len(parts)]
    expected = np.concatenate([np.arange(part.size) if part is leaf else np.full(part.size, -1) for part in parts])
    assert np.array_equal(labels(concatenation(parts), leaf), expected)


@given(case=shapes())
def test_unified_products_agree_on_every_index(case):
    one, other = (product([Axis(size) for size in sizes]) for sizes in case)
    unify(one, other)
    assert one.root() is other.root()
    if any(leaf.reason for leaf in (*one.leaves(), *other.leaves())):
        return  # divided in ways that do not fit, such as 2 x 3 and 3 x 2
    for leaf in one.leaves():
        assert np.array_equal(labels(one, leaf), labels(other, leaf))


def test_two_times_three_is_not_three_times_two():
    one, other = product([Axis(2), Axis(3)]), product([Axis(3), Axis(2)])
    unify(one, other)
    assert {leaf.reason for leaf in (*one.leaves(), *other.leaves())} == {"its layers divide it in different ways"}


def test_sizes_that_do_not_fit_are_kept():
    one, other = Axis(4), Axis(6)
    unify(one, other)
    assert one.reason and other.reason


def test_a_concatenation_is_no_product():
    whole = concatenation([Axis(2), Axis(4)])
    parts = factors(whole, [2, 3])
    assert [part.size for part in parts] == [2, 3]
    assert all(leaf.reason for leaf in (*whole.leaves(), *parts))


def test_concatenations_are_divided_until_they_agree():
    one, other = segments(Axis(6), [2, 4]), segments(Axis(6), [3, 3])
    unify(concatenation(one), concatenation(other))
    assert [leaf.size for part in one for leaf in part.leaves()] == [2, 1, 3]
    assert [leaf.size for part in other for leaf in part.leaves()] == [2, 1, 3]
    assert not any(leaf.reason for part in one for leaf in part.leaves())


def test_reasons_and_marks_reach_every_part_and_every_equal():
    whole, leaf = Axis(6), Axis(6)
    inside = factors(whole, [2, 3])
    unify(leaf.keep("first").keep("second").mark(averaged=True), whole)
    assert [(part.root().reason, part.root().averaged) for part in inside] == [("first", True)] * 2
    later = factors(inside[1], [3, 1])
    assert later[0].root().reason == "first"


def test_an_index_of_several_units_has_no_label():
    leaf = Axis(3)
    assert labels(product([leaf, leaf]), leaf) is None
