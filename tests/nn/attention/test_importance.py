"""Global tokens by their keys: the right ones, none by what comes later, the same token by token."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadConfig, BadTensor
from lissome.nn.attention.attend import attend
from lissome.nn.attention.chosen import top_blocks
from lissome.nn.attention.importance import (
    Importance,
    entropy_tokens,
    feature_entropy,
    importance_loss,
    learned_importance,
    learned_tokens,
    so_far,
    threshold_for,
    top_tokens,
)
from lissome.nn.attention.mass import left
from lissome.nn.attention.past import Past
from lissome.nn.attention.patterns import select, window
from tests.nn.attention.test_patterns import BACKENDS, HEADS, KV, inputs, looked, two_futures


def weighed():
    torch.manual_seed(2)
    found = Importance(KV, 16)
    torch.nn.init.normal_(found.weight)
    return found


LEARNED = weighed()
PATTERNS = [
    window(16) | top_tokens(3),
    window(16) | top_tokens(5, learned_importance),
    entropy_tokens(2.3, 9) | window(1),
    window(16) | learned_tokens(3.0, 20),
    window(16) | top_blocks(1) | top_tokens(2),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@given(length=st.integers(2, 330), data=st.data())
@settings(max_examples=6, deadline=None)
def test_nothing_depends_on_the_future(pattern, backend, length, data):
    at = data.draw(st.integers(0, length - 2))
    before, after = (
        attend(*given, select(pattern, looked(*given[:2], importance=LEARNED)), backend=backend)[:, :, : at + 1] for given in two_futures(length, at)
    )
    torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-6)  # tokens lie in other places of the extra blocks: sums in another order


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(cuts=st.lists(st.integers(1, 90), min_size=1, max_size=6))
@settings(max_examples=8, deadline=None)
def test_steps_choose_what_one_call_chooses(pattern, cuts):
    q, k, _ = inputs(sum(cuts))
    whole = select(pattern, looked(q, k, importance=LEARNED)).dense()
    past, at = Past(), 0
    for cut in cuts:
        sight = past.look(q[:, :, at : at + cut], k[:, :, : at + cut], importance=LEARNED)
        found = select(pattern, sight).dense()
        assert torch.equal(found.expand(2, HEADS, -1, -1), whole.expand(2, HEADS, -1, -1)[:, :, at : at + cut, : at + cut])
        at += cut


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [True, False])
def test_backends_agree_on_tokens_of_each_head(backend, causal):
    q, k, v = inputs(200)
    selection = select(window(20) | top_tokens(9), looked(q, k, causal=causal))
    torch.testing.assert_close(attend(q, k, v, selection, backend=backend), attend(q, k, v, selection, backend="reference"), atol=1e-5, rtol=1e-5)


def test_both_ways_the_highest_of_each_key_head_are_seen_by_all():
    q, k, _ = inputs(150)
    found = select(top_tokens(7), looked(q, k, causal=False)).dense()
    best = feature_entropy(k).topk(7).indices.repeat_interleave(HEADS // KV, 1)
    expected = torch.zeros(2, HEADS, 150, dtype=torch.bool).scatter_(2, best, True)
    assert torch.equal(found, expected[:, :, None].expand_as(found))
    assert bool(select(top_tokens(500), looked(q, k, causal=False)).dense().all())


def test_causal_ranks_are_among_the_blocks_that_end_before_the_tile():
    q, k, _ = inputs(260)
    found = select(top_tokens(4), looked(q, k)).dense()
    scores = feature_entropy(k).repeat_interleave(HEADS // KV, 1)
    for row in (0, 63, 64, 130, 259):
        start = row // 64 * 64
        expected = torch.zeros(2, HEADS, 260, dtype=torch.bool)
        if start:
            expected.scatter_(2, scores[..., :start].topk(4).indices, True)
        assert torch.equal(found[:, :, row], expected)


def test_ranks_do_not_depend_on_where_the_call_begins():
    scores = torch.randint(0, 5, (1, 2, 300)).float()  # many are equal
    whole = so_far(scores, 6, 5, 0).sort(-1).values
    assert torch.equal(so_far(scores, 6, 2, 3).sort(-1).values, whole[:, :, 3:])


def test_padding_becomes_no_global_token():
    q, k, _ = inputs(150)
    documents = torch.zeros(2, 150, dtype=torch.int64)
    documents[0, :20] = -1
    documents[1, 90:] = -1
    for pattern in (top_tokens(5), entropy_tokens(0.0, 5)):
        seen = select(pattern, looked(q, k, causal=False), documents).dense()
        for batch in range(2):
            real = documents[batch] >= 0
            assert bool((seen[batch][:, real].sum(-1) == 5).all())
            assert not bool(seen[batch][:, :, ~real].any())


def test_entropy_of_features_is_that_of_their_softmax():
    keys = torch.randn(2, KV, 9, 16)
    shares = keys.softmax(-1)
    torch.testing.assert_close(feature_entropy(keys), -(shares * shares.log()).sum(-1))
    assert float(feature_entropy(torch.zeros(1, 1, 1, 16))) == pytest.approx(float(torch.tensor(16.0).log()))


@given(st.integers(1, 40), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_a_threshold_lets_the_wanted_number_pass(count, seed):
    scores = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(seed))
    assert int((scores >= threshold_for(scores, count)).sum()) == 6 * count


def test_importance_learns_where_far_attention_falls():
    """Some keys have a feature that every query matches; the trained score ranks them first."""
    torch.manual_seed(0)

    def sight(seed):
        q, k, _ = inputs(256, seed)
        k[:, :, 40::50, 3] = 6.0
        q[..., 3] = 4.0
        found = looked(q, k)
        return dataclasses.replace(found, shown=select(window(32), found))

    scorer = Importance(KV, 16)
    optimizer = torch.optim.Adam(scorer.parameters(), 0.1)
    losses = []
    for step in range(30):
        loss = importance_loss(scorer, sight(step), torch.randint(64, 256, (32,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    best = scorer(sight(99).k).topk(5).indices
    assert bool((best % 50 == 40).all())


def test_the_loss_is_that_of_the_definition():
    q, k, _ = inputs(100)
    sight, rows = looked(q, k), torch.tensor([30, 99])
    sight = dataclasses.replace(sight, shown=select(window(10), sight))
    target = left(sight, rows).unflatten(1, (KV, -1)).sum(2)
    target = target / target.sum(-1, keepdim=True)
    scores = LEARNED(k)
    found = []
    for at, row in enumerate(rows.tolist()):
        seen = slice(0, row - 9)
        logs = scores[..., seen].log_softmax(-1)
        found.append((target[:, :, at, seen] * (target[:, :, at, seen].log() - logs)).sum(-1))
    assert float(importance_loss(LEARNED, sight, rows)) == pytest.approx(float(torch.stack(found).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: top_tokens(0), ValueError, "top_tokens: 0 is too small"),
        (lambda: top_tokens(1.5), ValueError, r"top_tokens: 1\.5 is no whole number"),
        (lambda: entropy_tokens(float("nan"), 8), ValueError, "entropy_tokens: nan is no threshold"),
        (lambda: entropy_tokens(1.0, 0), ValueError, "entropy_tokens: 0 is too small"),
        (lambda: threshold_for(torch.zeros(9), 10), ValueError, "10 tokens of 9"),
        (lambda: select(top_tokens(1), dataclasses.replace(looked(*inputs(9)[:2]), k=None)), ValueError, "chooses by keys"),
        (lambda: select(learned_tokens(1.0), looked(*inputs(9)[:2])), BadConfig, "this layer has none"),
        (
            lambda: select(learned_tokens(1.0), looked(*inputs(9)[:2], importance=Importance(KV, 8))),
            BadTensor,
            "made for 3 key heads of 8, and this layer has 3 of 16",
        ),
    ],
)
def test_what_makes_no_sense_is_said(make, error, said):
    with pytest.raises(error, match=said):
        make()
