"""The indexer finds what mean keys cannot, sees no future, and says token by token what it says in one go."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lissome.core.errors import BadConfig, BadTensor
from lissome.nn.attention import indexer as module
from lissome.nn.attention.attend import attend
from lissome.nn.attention.chosen import hidden, leading, pooled_keys, random_blocks, top_blocks, top_share
from lissome.nn.attention.indexer import Indexer, indexer, indexer_loss
from lissome.nn.attention.mass import block_mass, kept, oracle_blocks, softmax_rows
from lissome.nn.attention.past import Past
from lissome.nn.attention.patterns import everything, per_head, select, window
from lissome.nn.attention.sight import Sight
from tests.nn.attention.test_patterns import BACKENDS, HEADS, KV, inputs, looked, same_past, two_futures


def made(span=1, dim=16, **sizes):
    torch.manual_seed(3)
    found = Indexer(HEADS, KV, dim, index_dim=8, span=span, **sizes)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("span", [1, 8, 64])
@given(length=st.integers(2, 330), data=st.data())
@settings(max_examples=10, deadline=None)
def test_nothing_depends_on_the_future(span, backend, length, data):
    at, scorer = data.draw(st.integers(0, length - 2)), made(span)
    for pattern in (window(30) | top_blocks(2, scorer), top_share(0.4, scorer) | window(64), per_head(window(9), window(64) | top_blocks(1, scorer))):
        before, after = (attend(*tensors, select(pattern, looked(*tensors[:2])), backend=backend)[:, :, : at + 1] for tensors in two_futures(length, at))
        same_past(before, after, backend)


@pytest.mark.parametrize("span", [1, 16])
@given(cuts=st.lists(st.integers(1, 90), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_steps_choose_what_one_call_chooses(span, cuts):
    scorer, pattern, length = made(span), top_blocks(1, indexer) | window(8), sum(cuts)
    q, k, _ = inputs(length)
    whole = select(pattern, looked(q, k, indexer=scorer)).dense()
    past, at = Past(), 0
    for cut in cuts:
        sight = past.look(q[:, :, at : at + cut], k[:, :, : at + cut], indexer=scorer)
        assert torch.equal(select(pattern, sight).dense(), whole[:, :, at : at + cut, : at + cut])
        at += cut


def test_a_decoder_works_out_small_keys_once_and_scores_once_a_tile(monkeypatch):
    scorer, seen = made(), []
    monkeypatch.setattr(Indexer, "_scores", lambda self, q, small, absent, own=Indexer._scores: (seen.append(q.shape[2]), own(self, q, small, absent))[1])
    q, k, _ = inputs(300)
    past = Past()
    for at in range(190, 300):
        sight = past.look(q[:, :, : at + 1] if at == 190 else q[:, :, at : at + 1], k[:, :, : at + 1], indexer=scorer)
        select(top_blocks(1, indexer), sight)
    assert seen == [3, 1, 1, 1]  # the first call; one step that ends the tile; a tile each of those begun at 192 and 256
    assert sight.known[scorer].shape[:3] == (2, KV, 4)


@pytest.mark.parametrize("causal", [True, False])
def test_choosing_everything_is_dense_attention(causal):
    q, k, v = inputs(200)
    expected = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    for pattern in (window(64) | top_blocks(9, made()), window(64) | top_share(1.0, made())):
        torch.testing.assert_close(attend(q, k, v, select(pattern, looked(q, k, causal=causal)), backend="chunked"), expected, atol=1e-5, rtol=1e-5)


def test_a_span_of_one_with_all_dimensions_begins_as_attention_itself():
    """A fresh indexer as wide as the head, of small keys that stand for a key each, scores a block by the log of the mass of its first query."""
    torch.manual_seed(0)
    q, k, _ = inputs(256)
    sight, scorer = looked(q, k, causal=False), Indexer(HEADS, KV, 16, index_dim=16)
    with torch.no_grad():
        scorer.query.copy_((scorer.key[0][None, :, None] * torch.tensor([1.0, -1.0])[:, None]).expand_as(scorer.query))
        found = scorer(leading(sight), sight).softmax(-1)
    torch.testing.assert_close(found, block_mass(softmax_rows(sight, torch.arange(0, 256, 64))), atol=1e-5, rtol=1e-4)


def test_tiles_are_scored_in_parts_of_bounded_size(monkeypatch):
    q, k, _ = inputs(330)
    scorer = made()
    with torch.no_grad():
        whole = scorer(leading(looked(q, k)), looked(q, k))
        monkeypatch.setattr(module, "FLOATS", 1)
        torch.testing.assert_close(scorer(leading(looked(q, k)), looked(q, k)), whole)


def test_padding_is_neither_scored_nor_chosen():
    q, k, _ = inputs(300)
    documents = torch.zeros(2, 300, dtype=torch.int64)
    documents[1, 90:] = -1
    changed = k.clone()
    changed[1, :, 90:] = 50.0
    pattern = window(8) | top_blocks(1, made())
    outs = [select(pattern, looked(q, one, causal=False), documents).dense() for one in (k, changed)]
    assert torch.equal(*outs)
    assert bool(outs[0][1, :, :90, 64:90].any()), "the block with the last tokens and padding may be chosen"
    assert not bool(outs[0][1, :, :, 90:].any())


def needles(seed, length=512, dim=16):
    """Keys whose block mean says nothing: each query's match stands in one block, beside its opposite. A third of the dimensions matter."""
    draw = torch.Generator().manual_seed(seed)
    q, k = torch.randn(1, HEADS, length, dim, generator=draw), 0.2 * torch.randn(1, KV, length, dim, generator=draw)
    for tile in range(1, length // 64):
        block = int(torch.randint(tile, (), generator=draw))
        aim = functional.normalize(torch.randn(KV, dim, generator=draw) * (torch.arange(dim) < 5), dim=-1)
        q[0, :, tile * 64 : (tile + 1) * 64] = 5 * aim.repeat_interleave(HEADS // KV, 0)[:, None] + 0.1 * q[0, :, tile * 64 : (tile + 1) * 64]
        spot = block * 64 + 2 * int(torch.randint(32, (), generator=draw))
        k[0, :, spot], k[0, :, spot + 1] = 5 * aim, -5 * aim
    return Sight(length, length, 0, HEADS, True, q, k)


def test_a_short_fit_beats_pooled_keys_where_means_say_nothing():
    torch.manual_seed(0)
    scorer = Indexer(HEADS, KV, 16, index_dim=5)
    base, rows = window(64), torch.arange(128, 512, 5)
    optimizer = torch.optim.Adam(scorer.parameters(), 1e-2)
    losses = []
    for step in range(60):
        sight = needles(step)
        loss = indexer_loss(scorer, dataclasses.replace(sight, shown=select(base, sight)), torch.randint(128, 512, (32,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    tests = [needles(1000 + seed) for seed in range(4)]

    def share(one):
        return sum(float(kept(sight, select(base | top_blocks(1, one), sight), rows).mean()) for sight in tests) / len(tests)

    fitted, best = share(scorer), share(oracle_blocks)
    assert fitted > share(pooled_keys) + 0.2 * best
    assert fitted > share(random_blocks) + 0.2 * best


def test_the_loss_is_zero_for_attentions_own_masses_and_touches_only_the_indexer():
    q, k, _ = (tensor.requires_grad_() for tensor in inputs(300))
    sight, rows, wanted = looked(q, k), torch.arange(0, 300, 64), made()

    def perfect(queries, seen):
        masses = block_mass(softmax_rows(seen, rows)).log()
        return masses[:, :, -queries.shape[2] :]

    assert float(indexer_loss(perfect, sight, rows)) == pytest.approx(0, abs=1e-5)
    loss = indexer_loss(wanted, sight, rows)
    assert float(loss) > 0.01
    loss.backward()
    assert q.grad is None and k.grad is None
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) and bool(p.grad.any()) for p in wanted.parameters())


def test_the_loss_leaves_out_what_is_shown_padding_and_queries_without_a_choice():
    q, k, _ = inputs(200)
    wanted = made()
    assert float(indexer_loss(wanted, looked(q, k), torch.arange(128))) == 0  # one block before them at most
    assert float(indexer_loss(wanted, looked(q, k, shown=select(everything(), looked(q, k))), torch.arange(200))) == 0
    documents = torch.zeros(2, 200, dtype=torch.int64)
    documents[:, 100:] = -1
    changed = k.clone()
    changed[:, :, 100:] = 9.0
    found = [indexer_loss(wanted, looked(q, one, causal=False, documents=documents), torch.arange(200)) for one in (k, changed)]
    assert torch.equal(*found)
    assert bool(hidden(looked(q, k, documents=documents), 4)[..., 2:].all())


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: Indexer(6, 4, 16), BadConfig, "6 heads, 4 key heads"),
        (lambda: Indexer(6, 3, 16, index_heads=0), BadConfig, "with 0 small heads"),
        (lambda: Indexer(6, 3, 16, span=3), BadConfig, "a span of 3 keys does not divide"),
        (
            lambda: select(top_blocks(1, made(dim=8)), looked(*inputs(80)[:2])),
            BadTensor,
            "made for 6 heads and 3 key heads of 8, and this layer has 6 heads and 3 key heads of 16",
        ),
        (lambda: select(top_blocks(1, indexer), looked(*inputs(80)[:2])), BadConfig, "this layer has none"),
        (lambda: top_blocks(0, indexer), ValueError, "0 is too small"),
        (lambda: top_share(0.0), ValueError, "a share of 0 is not above 0"),
        (lambda: top_share(1.5), ValueError, "a share of 1.5"),
    ],
)
def test_what_does_not_fit_is_said(make, error, said):
    with pytest.raises(error, match=said):
        make()
