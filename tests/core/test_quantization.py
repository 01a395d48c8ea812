from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lissome.core.errors import BadInput
from lissome.core.quantization import (
    LayerQuant,
    LayerScales,
    Quantization,
    Range,
    Scales,
    grouped,
    integers,
    read_quantization,
    write_quantization,
)

QUANTS = [
    LayerQuant(precision="int8-static"),
    LayerQuant(precision="int8-dynamic", reduce_range=True),
    LayerQuant(precision="w8a16", group=16, symmetric=False),
    LayerQuant(precision="w4a16", group=32),
    LayerQuant(precision="w4a16", symmetric=False),
]


@pytest.mark.parametrize(("quant", "levels"), zip(QUANTS, [(-127, 127), (-63, 63), (0, 255), (-8, 7), (0, 15)], strict=True))
def test_levels(quant, levels):
    assert quant.levels == levels


@pytest.mark.parametrize("wrong", [{"precision": "int8-static", "group": 32}, {"precision": "bf16", "symmetric": False}])
def test_groups_are_for_weight_only_layers(wrong):
    with pytest.raises(ValidationError, match="are for weight-only layers"):
        LayerQuant(**wrong)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(QUANTS), st.integers(1, 5), st.integers(1, 70), st.integers(0, 10**6))
def test_integers_are_the_nearest_ones(quant, outputs, inputs, seed):
    """Against a plain loop over every weight."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(outputs, inputs)).astype(np.float32)
    groups = 1 if quant.group is None else -(-inputs // quant.group)
    shape = (outputs,) if quant.group is None else (outputs, groups)
    scale = rng.uniform(0.01, 0.2, shape).astype(np.float32)
    zero = None if quant.symmetric else rng.integers(0, quant.levels[1] + 1, shape).astype(np.int32)
    found = integers(weight, quant, LayerScales(scale, zero)).reshape(outputs, -1)
    low, high = quant.levels
    for i in range(outputs):
        for j in range(inputs):
            at = (i,) if quant.group is None else (i, j // quant.group)
            expected = min(high, max(low, round(float(weight[i, j] / scale[at])) + (0 if zero is None else int(zero[at]))))
            assert found[i, j] == expected


def test_groups_are_filled_up_with_zeros():
    rows = grouped(np.arange(10, dtype=np.float32).reshape(2, 5), 16)
    assert rows.shape == (2, 1, 16)
    assert np.array_equal(rows[1, 0, :5], [5, 6, 7, 8, 9])
    assert not rows[:, :, 5:].any()


@pytest.fixture
def kept():
    layers = {"a.b": QUANTS[0], "c": QUANTS[4], "d": LayerQuant(precision="bf16")}
    scales = {
        "a.b": LayerScales(np.array([0.1, 1e-30], np.float32), None, Range(float(np.float32(0.3)), 255), Range(1.0, 0)),
        "c": LayerScales(np.full((3, 2), 0.7, np.float32), np.arange(6, dtype=np.int32).reshape(3, 2)),
    }
    return Quantization(layers=layers, norms={"a.b": "a.norm"}), Scales(scales)


def test_round_trip(kept, tmp_path):
    write_quantization(*kept, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"quantization.json", "scales.safetensors"}
    quantization, scales = read_quantization(tmp_path)
    assert quantization == kept[0]
    assert quantization.output_of("a.b") == "a.norm"
    assert quantization.output_of("c") == "c"
    expected, found = kept[1].arrays(), scales.arrays()
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) and expected[name].dtype == found[name].dtype for name in expected)
    assert scales.layers["a.b"].input == kept[1].layers["a.b"].input


def test_what_is_missing_is_named(kept, tmp_path):
    with pytest.raises(BadInput, match=r"quantization\.json"):
        read_quantization(tmp_path)
    write_quantization(kept[0], Scales({"c": kept[1].layers["c"]}), tmp_path)
    with pytest.raises(BadInput, match=r"has no scales of the layer a\.b"):
        read_quantization(tmp_path)
    (tmp_path / "scales.safetensors").write_bytes(b"half of it")
    with pytest.raises(BadInput, match="cannot be read"):
        read_quantization(tmp_path)
