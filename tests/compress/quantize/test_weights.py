from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.compress.quantize.weights import grouped, weight_scales
from lissome.core import quantization as core
from lissome.core.quantization import LayerQuant, integers

QUANTS = [
    LayerQuant(precision="int8-static"),
    LayerQuant(precision="int8-static", reduce_range=True),
    LayerQuant(precision="w8a16", group=16),
    LayerQuant(precision="w4a16", group=16),
    LayerQuant(precision="w4a16", group=32, symmetric=False),
]


def restored(weight, quant, scales):
    whole = integers(weight, quant, scales).astype(np.float64)
    zero = 0 if scales.zero is None else scales.zero[..., None]
    return ((whole - zero) * scales.weight[..., None]).reshape(len(weight), -1)[:, : weight[0].size].reshape(weight.shape)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(QUANTS), st.integers(1, 4), st.integers(1, 80), st.floats(1e-6, 1e4), st.integers(0, 10**6))
def test_never_worse_than_the_largest_weights_scale(quant, outputs, inputs, size, seed):
    weight = (size * np.random.default_rng(seed).standard_t(3, (outputs, inputs))).astype(np.float32)
    scales = weight_scales(torch.from_numpy(weight), quant)
    low, high = quant.levels
    rows = core.grouped(weight, quant.group)
    if quant.symmetric:
        plain = core.LayerScales((np.abs(rows).max(-1) / high).astype(np.float32))
    else:
        floor, ceiling = np.minimum(rows.min(-1), 0), np.maximum(rows.max(-1), 0)
        step = np.maximum((ceiling - floor) / (high - low), 1e-30).astype(np.float32)
        plain = core.LayerScales(step, np.clip(np.rint(low - floor / step), low, high).astype(np.int32))
    found, reference = (np.square(restored(weight, quant, one) - weight).sum() for one in (scales, plain))
    assert found <= reference * (1 + 1e-4) + 1e-12 * size**2


def test_shapes_and_zero_rows():
    weight = torch.randn(6, 3, 3, 3)
    weight[2] = 0
    scales = weight_scales(weight, QUANTS[0])
    assert scales.weight.shape == (6,)
    assert scales.weight[2] == 1
    assert scales.zero is None
    scales = weight_scales(torch.randn(6, 40), QUANTS[4])
    assert scales.weight.shape == scales.zero.shape == (6, 2)
    assert scales.zero.dtype == np.int32


def test_both_spellings_of_groups_agree():
    weight = torch.randn(5, 37)
    for group in (None, 16, 64):
        assert np.array_equal(grouped(weight, group).numpy(), core.grouped(weight.numpy(), group))
