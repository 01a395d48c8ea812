"""Whatever is joined by |, & and per_head shows what its parts show, single tokens among them, and each key once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.kernels.attention import flex
from lissome.kernels.attention.selection import FULL, of_mask
from lissome.kernels.library import library
from lissome.nn.attention import algebra
from lissome.nn.attention.attend import attend
from lissome.nn.attention.importance import top_tokens
from lissome.nn.attention.patterns import per_head, select, sink, tokens, window
from tests.nn.attention.compositions import compositions, meant, seen
from tests.nn.attention.test_patterns import inputs, looked

BACKENDS = ["chunked", "reference", "dense", *(["native"] if library().handle else [])]


def plainly(q, k, v, mask):
    """Attention by a mask, from its definition."""
    k, v = (one.repeat_interleave(q.shape[1] // k.shape[1], 1) for one in (k, v))
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    return torch.where(mask.any(-1, keepdim=True), scores.softmax(-1), 0.0) @ v


@given(pattern=compositions(choosing=False), keys=st.integers(1, 230), share=st.floats(0.01, 1), both_ways=st.booleans(), split=st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_composition_shows_what_its_parts_show(pattern, keys, share, both_ways, split):
    q, k, v = inputs(keys)
    q = q[:, :, -max(1, int(share * keys)) :]
    sight = looked(q, k, keys - q.shape[2], causal=not both_ways)
    documents = torch.stack([torch.arange(keys) // 37, torch.where(torch.arange(keys) < 5, -1, torch.arange(keys) // 100)]) if split else None
    right = meant(pattern, sight, documents)
    selection = select(pattern, sight, documents)
    selection.check()
    assert torch.equal(seen(pattern, sight, documents), right)
    for backend in BACKENDS:
        torch.testing.assert_close(attend(q, k, v, selection, backend=backend), plainly(q, k, v, right), atol=2e-5, rtol=2e-5)


TOKENS = [
    tokens([3]) | top_tokens(4),
    tokens([3, 70]) | tokens([3, 9]),
    (tokens([5, 80]) & window(30)) | tokens([5, 9]) | tokens([5, 80, 130]),
    per_head(window(64), window(64) | top_tokens(4)),
    per_head(tokens(range(0, 140, 2)), tokens([1]) | top_tokens(9), window(5)) | tokens(range(0, 200, 3)),
    per_head(tokens(range(64)), tokens([7]) | sink(3)) | window(9),
]


@pytest.mark.parametrize("pattern", TOKENS, ids=str)
@pytest.mark.parametrize("both_ways", [False, True])
def test_tokens_of_several_patterns_are_seen_once_in_one_softmax(pattern, both_ways):
    q, k, v = inputs(200)
    sight = looked(q, k, causal=not both_ways)
    right, selection = meant(pattern, sight), select(pattern, sight)
    assert torch.equal(seen(pattern, sight), right)
    grads = []
    for backend in BACKENDS:
        leaves = [one.clone().requires_grad_() for one in (q, k, v)]
        out = attend(*leaves, selection, backend=backend)
        torch.testing.assert_close(out, plainly(q, k, v, right), atol=2e-5, rtol=2e-5)
        grads.append(torch.autograd.grad(out.square().sum(), leaves))
    for other in grads[1:]:
        for one, two in zip(grads[0], other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(flex.attend(q, k, v, selection, q.shape[-1] ** -0.5, compiled=False), plainly(q, k, v, right), atol=2e-5, rtol=2e-5)


def test_tokens_beside_others_are_no_more_than_they_were():
    """A block of tokens that is seen whole and not filled does not grow where more tokens are put behind it."""
    whole = of_mask(torch.ones(1, 1, 64, 64, dtype=torch.bool), tokens=torch.tensor([[[3, 40]]]))
    whole.masks[whole.blocks == whole.plain] = FULL
    other = of_mask(torch.zeros(1, 1, 64, 64, dtype=torch.bool).index_fill(3, torch.tensor([9]), True), tokens=torch.tensor([[[9]]]))
    assert torch.equal(algebra.once(algebra.union(whole, other)).dense(), whole.dense())
    both = algebra.once(algebra.by_head([whole, algebra.union(whole, other)], [0, 1]))
    assert torch.equal(both.dense()[:, :1], whole.dense())
