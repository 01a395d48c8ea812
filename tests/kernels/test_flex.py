"""FlexAttention is told of the selection what the reference is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from lissome.kernels.attention import flex, reference
from lissome.kernels.attention.selection import of_mask
from lissome.machine.compiler import compiler
from lissome.nn.attention.attend import attend
from lissome.nn.attention.patterns import select, sink, tokens, window
from lissome.nn.attention.sight import Sight
from tests.kernels.test_attention import cases


@pytest.fixture(autouse=True, scope="module")
def plain():
    """Without torch.compile FlexAttention would still be traced, for seconds a shape."""
    from torch.nn.attention import flex_attention

    before = flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    yield
    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = before


@given(case=cases())
@settings(max_examples=40, deadline=None)
def test_the_rule_equals_the_reference(case):
    """Without a compiler torch computes all pairs by the rule, which must then be right for pairs that no block mask lists."""
    q, k, v, selection, _ = case
    found = flex.attend(q, k, v, selection, 0.3, compiled=False)
    torch.testing.assert_close(found, reference.attend(q, k, v, selection, 0.3), atol=1e-9, rtol=1e-9)


@given(case=cases())
@settings(max_examples=40, deadline=None)
def test_the_blocks_listed_hold_what_is_visible_and_whole_ones_nothing_else(case):
    """Compiled code looks at no block that is not listed, and asks no rule in those listed as whole."""
    q, k, v, selection, _ = case
    _, keys, _, mask = flex.prepared(q, k, v, selection)
    rows, length = selection.lead + selection.queries, keys.shape[2]
    batch, heads = mask.kv_indices.shape[:2]
    places = [torch.arange(size) for size in (batch, heads, rows, length)]
    b, h, i, j = (places[at].view([-1 if at == axis else 1 for axis in range(4)]).expand(batch, heads, rows, length) for at in range(4))
    visible = mask.mask_mod(b, h, i, j)
    partly, whole = (
        _listed(counts, order)[b, h, i // 64, j // 64]
        for counts, order in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices))
    )
    assert not bool((partly & whole).any())
    assert not bool((visible & ~partly & ~whole).any())
    assert bool(visible[whole].all())


def _listed(counts, order):
    """Which blocks a tile lists [b, h, tiles, blocks]."""
    there = torch.arange(order.shape[-1]) < counts[..., None]
    return torch.zeros(order.shape, dtype=torch.bool).scatter_(3, order.long(), there)


def test_heads_of_a_group_with_tokens_of_their_own():
    q, k, v = torch.randn(1, 4, 70, 8), torch.randn(1, 2, 70, 8), torch.randn(1, 2, 70, 8)
    own = torch.tensor([[[3, 9], [3, 9], [1, 60], [2, 61]]])
    selection = of_mask(torch.rand(1, 4, 70, 70) < 0.5, tokens=own)
    torch.testing.assert_close(flex.attend(q, k, v, selection, 0.3, compiled=False), reference.attend(q, k, v, selection, 0.3), atol=1e-5, rtol=1e-5)


def test_what_it_cannot_do_on_a_cpu_is_said():
    q, k, v = (torch.randn(1, 2, 70, 16) for _ in range(3))
    selection = select(window(20), Sight(70, 70))
    with pytest.raises(ValueError, match=r"no gradients on a CPU\n.*backend=\"auto\" to train"):
        attend(q.requires_grad_(), k, v, selection, backend="flex")
    with pytest.raises(ValueError, match=r"does not take float64"):
        attend(q.detach().double(), k.double(), v.double(), selection, backend="flex")


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_compiled_code_equals_the_reference(dtype):
    for pattern, heads, before in ((window(50) | tokens([3, 70, 100]), 6, 0), (window(90) | sink(4), 3, 130)):
        torch.manual_seed(0)
        q = torch.randn(2, heads, 200, 32).to(dtype)
        k, v = (torch.randn(2, 3, 200 + before, 32).to(dtype) for _ in range(2))
        selection = select(pattern, Sight(200, 200 + before, before))
        found = attend(q, k, v, selection, backend="flex")
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found, attend(q, k, v, selection, backend="reference"), atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_it_trains_on_a_gpu():
    q, k, v = (torch.randn(1, 4, 300, 64, device="cuda", requires_grad=True) for _ in range(3))
    selection = select(window(90) | tokens([3, 70]), Sight(300, 300)).to("cuda")
    found = torch.autograd.grad(attend(q, k, v, selection, backend="flex").square().sum(), (q, k, v))
    right = torch.autograd.grad(attend(q, k, v, selection, backend="reference").square().sum(), (q, k, v))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)
