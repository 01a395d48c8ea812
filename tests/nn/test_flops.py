from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lissome.nn.flops import attention_flops, count_flops
from tests.nn.tiny import bert, images, rows, texts


class Attention(nn.Module):
    def forward(self, x):
        return functional.scaled_dot_product_attention(x, x, x)


@given(batch=st.integers(1, 5), inputs=st.integers(1, 9), outputs=st.integers(1, 9), bias=st.booleans())
@settings(max_examples=20, deadline=None)
def test_linear(batch, inputs, outputs, bias):
    assert count_flops(nn.Linear(inputs, outputs, bias=bias), rows(batch, width=inputs)) == 2 * batch * inputs * outputs


def test_convolution():
    module = nn.Conv2d(1, 6, 3, stride=2, padding=1)
    assert count_flops(module, images(5, size=12)) == 2 * 5 * (6 * 6) * 6 * (1 * 3 * 3)


@given(batch=st.integers(1, 4), heads=st.integers(1, 3), length=st.integers(1, 20), width=st.sampled_from([4, 8, 16]))
@settings(max_examples=20, deadline=None)
def test_fused_attention_is_counted(batch, heads, length, width):
    x = torch.randn(batch, heads, length, width).numpy()
    assert count_flops(Attention(), {"x": x}) == 2 * (2 * batch * heads * length * length * width)


def test_attention_formula_for_unequal_shapes():
    assert attention_flops((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)) == 2 * 2 * 3 * 5 * 7 * (8 + 4)


@pytest.mark.parametrize(("batch", "length"), [(1, 9), (4, 16)])
def test_bert(batch, length):
    """Per layer: four square projections, two of the feed-forward, two products of attention; then the pooler and the head on one token."""
    hidden, inner, layers, labels, tokens = 32, 64, 2, 2, batch * length
    layer = 2 * tokens * hidden * (4 * hidden + 2 * inner) + 2 * 2 * batch * length * length * hidden
    expected = layers * layer + 2 * batch * hidden * (hidden + labels)
    assert count_flops(bert(), texts(batch, length)) == expected


def test_counting_leaves_the_module_as_it_was():
    module = bert()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    count_flops(module, texts(2, 5))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
