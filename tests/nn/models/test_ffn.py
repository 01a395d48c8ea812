"""Feed-forward kinds against their formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadConfig
from lissome.nn.models.ffn import Gated, Thresholded
from lissome.nn.models.swap import swap
from tests.nn.models.small import ids, model


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 2), st.sampled_from(["silu", "relu", "relu2"]), st.sampled_from(["gate", "product"]), st.integers(0, 99))
def test_a_gated_part_equals_the_formula_neuron_by_neuron(threshold, activation, on, seed):
    torch.manual_seed(seed)
    ffn, x = Thresholded(8, 12, activation, threshold, on).double(), torch.randn(3, 8).double()
    gate, up = ffn.gate_proj(x), ffn.up_proj(x)
    expected = torch.zeros(3, 8).double()
    for row in range(3):
        for j in range(12):
            g = gate[row, j]
            active = {"silu": g * torch.sigmoid(g), "relu": g.clamp_min(0), "relu2": g.clamp_min(0) ** 2}[activation]
            if abs(active if on == "gate" else active * up[row, j]) > threshold:
                expected[row] += active * up[row, j] * ffn.down_proj.weight[:, j]
    torch.testing.assert_close(ffn(x), expected)


def test_without_a_threshold_it_is_gated():
    torch.manual_seed(0)
    gated, thresholded = Gated(8, 12, "gelu_tanh"), Thresholded(8, 12, "gelu_tanh")
    thresholded.load_state_dict(gated.state_dict())
    x = torch.randn(5, 8)
    assert torch.equal(gated(x), thresholded(x))


@torch.no_grad()
def test_a_threshold_is_swapped_into_one_block():
    old = model()
    found = swap(old, "ffn", {"kind": "thresholded", "activation": "silu", "threshold": 0.3}, layers=[1])
    assert (found.new, found.left) == ((), ())
    assert not torch.allclose(found.model(ids()), old(ids()), atol=1e-3)
    again = swap(found.model, "ffn", {"threshold": 0.0}, layers=[1]).model
    torch.testing.assert_close(again(ids()), old(ids()))


@pytest.mark.parametrize("threshold", [-1.0, float("nan"), float("inf")])
def test_a_threshold_that_is_none(threshold):
    with pytest.raises(BadConfig, match="threshold: Input"):
        swap(model(), "ffn", {"kind": "thresholded", "inner": 8, "threshold": threshold})
