from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lissome.core.manifest import Precision
from lissome.export.parity import TOLERANCE, Parity, compare, first_departure, relative_error

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)
ARRAYS = hnp.arrays(np.float32, SHAPES, elements=st.floats(-1e3, 1e3, width=32))
BROKEN = st.sampled_from([np.nan, np.inf, -np.inf])


@given(ARRAYS)
def test_equal_is_zero(array):
    assert relative_error(array, array.copy()) == 0.0
    assert compare(array, array, "fp32").ok


@given(ARRAYS.filter(lambda a: np.abs(a).max() > 1e-3), st.floats(-3, 3))
def test_scaling_is_its_own_size(array, by):
    scaled = array.astype(np.float64) * (1 + by)
    assert relative_error(array, scaled) == pytest.approx(abs(by), abs=1e-9)


@given(ARRAYS.filter(lambda a: np.abs(a).max() > 1e-3), st.floats(1e-3, 1e3))
def test_units_do_not_matter(array, unit):
    other = array + 0.125
    assert relative_error(array * np.float64(unit), other * np.float64(unit)) == pytest.approx(relative_error(array, other), rel=1e-6)


@given(ARRAYS, BROKEN, st.data())
def test_nan_and_infinity_never_pass(array, value, data):
    found = array.copy()
    found.flat[data.draw(st.integers(0, array.size - 1))] = value
    for precision in TOLERANCE:
        assert not compare(array, found, precision).ok
        assert not compare(found, found, precision).ok
        assert not compare(found, array, precision).ok


@given(ARRAYS, SHAPES)
def test_another_shape_never_passes(array, shape):
    if shape != array.shape:
        assert relative_error(array, np.zeros(shape, np.float32)) == math.inf


def test_against_zeros_the_error_is_absolute():
    assert relative_error(np.zeros((2, 2)), np.full((2, 2), 0.5)) == 1.0
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0


def test_large_values_do_not_overflow():
    assert relative_error(np.full(9, 3e38, np.float32), np.full(9, -3e38, np.float32)) == pytest.approx(2.0)


def test_every_precision_has_a_tolerance():
    assert set(TOLERANCE) == set(Precision.__args__)
    assert TOLERANCE["fp32"] < TOLERANCE["bf16"] < TOLERANCE["int8-static"]


@pytest.mark.parametrize(("error", "ok"), [(0.0, True), (0.1, True), (0.11, False), (math.nan, False), (math.inf, False)])
def test_the_gate(error, ok):
    assert Parity(error, 0.1).ok is ok


def test_sentences():
    assert Parity(0.05, 0.1).sentence() == "outputs differ by 0.05 of their size (allowed 0.1)"
    assert Parity(0.5, 0.1).sentence() == "parity failed: outputs differ by 0.5 of their size (allowed 0.1)"
    assert Parity(0.5, 0.1, "encoder.3", 0.4).sentence().endswith("; the first layer to depart is encoder.3 (0.4)")
    assert "NaN, infinite or wrongly shaped outputs" in Parity(math.inf, 0.1).sentence()


def layers(**values: float) -> dict[str, np.ndarray]:
    return {name: np.full((2, 3), value) for name, value in values.items()}


def test_first_departure_goes_by_the_originals_order():
    expected = layers(first=1, second=1, third=1)
    assert first_departure(expected, layers(third=5, second=2, first=1), 0.1) == ("second", 1.0)
    assert first_departure(expected, layers(first=1.05, second=1, third=1), 0.1) is None


def test_layers_that_cannot_be_compared_are_passed_over():
    expected = layers(first=1, second=1, third=1)
    found = {"first": np.ones((3, 2)), "third": np.full((2, 3), np.nan)}
    assert first_departure(expected, found, 0.1) == ("third", math.inf)
    assert first_departure(expected, {}, 0.1) is None
