"""Blocks by what the tile's first query pays them: exact, causal, the same token by token, and better than means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.nn.attention import chosen
from lissome.nn.attention.attend import attend
from lissome.nn.attention.chosen import block_logits, leading, leading_query, pooled_keys, top_blocks, top_share
from lissome.nn.attention.mass import block_mass, kept, oracle_blocks, softmax_rows
from lissome.nn.attention.past import Past
from lissome.nn.attention.patterns import select, window
from lissome.nn.attention.sight import Sight

HEADS, KV, DIM = 4, 2, 16


def inputs(length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, HEADS, length, DIM, generator=draw), torch.randn(2, KV, length, DIM, generator=draw)


def looked(q: torch.Tensor, k: torch.Tensor, **more: object) -> Sight:
    return Sight(q.shape[2], k.shape[2], k.shape[2] - q.shape[2], HEADS, q=q, k=k, **more)


@given(length=st.integers(1, 300), seed=st.integers(0, 99), floats=st.sampled_from([1, 9_000, 1 << 22]), ways=st.booleans())
@settings(max_examples=25, deadline=None)
def test_scores_are_the_logarithm_of_the_mass(length, seed, floats, ways):
    q, k = inputs(length, seed)
    sight = looked(q, k, causal=not ways)
    chosen.FLOATS, before = floats, chosen.FLOATS
    found = block_logits(leading(sight), sight)
    chosen.FLOATS = before
    rows = torch.arange(0, length, 64)
    mass = block_mass(softmax_rows(sight, rows))
    for tile in range(len(rows)):
        ends = tile if sight.causal else mass.shape[-1]  # blocks that end before the tile; the others are not chosen
        expected, own = mass[:, :, tile, :ends], found[:, :, tile, :ends].exp()
        torch.testing.assert_close(own * expected.sum(-1, keepdim=True), expected * own.sum(-1, keepdim=True), rtol=1e-4, atol=1e-4)


def test_padding_has_no_mass():
    q, k = inputs(256)
    documents = torch.zeros(2, 256, dtype=torch.int64)
    documents[1, 100:] = -1
    found = block_logits(leading(looked(q, k)), looked(q, k, documents=documents, causal=False))
    assert torch.isinf(found[1, :, :, 2:]).all()
    short = looked(q[1:, :, :100], k[1:, :, :100], causal=False)
    torch.testing.assert_close(found[1:, :, :2, :2], block_logits(leading(short), short))


@given(length=st.integers(2, 330), data=st.data())
@settings(max_examples=15, deadline=None)
def test_nothing_depends_on_the_future(length, data):
    at = data.draw(st.integers(0, length - 2))
    (q, k), (other_q, other_k), v = inputs(length), inputs(length, 1), torch.randn(2, KV, length, DIM)
    changed_q, changed_k = (torch.cat([one[:, :, : at + 1], other[:, :, at + 1 :]], 2) for one, other in ((q, other_q), (k, other_k)))
    for pattern in (window(30) | top_blocks(2, leading_query), top_share(0.4, leading_query) | window(64)):
        before, after = (attend(a, b, v, select(pattern, looked(a, b)), backend="chunked")[:, :, : at + 1] for a, b in ((q, k), (changed_q, changed_k)))
        assert torch.equal(before, after)


@given(cuts=st.lists(st.integers(1, 90), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_steps_choose_what_one_call_chooses(cuts):
    pattern, length = top_blocks(1, leading_query) | window(8), sum(cuts)
    q, k = inputs(length)
    whole, past, at = select(pattern, looked(q, k)).dense(), Past(), 0
    for cut in cuts:
        sight = past.look(q[:, :, at : at + cut], k[:, :, : at + cut])
        assert torch.equal(select(pattern, sight).dense(), whole[:, :, at : at + cut, : at + cut])
        at += cut


def test_a_decoder_looks_at_all_keys_once_a_tile(monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr(chosen, "block_logits", lambda q, sight, own=block_logits: (seen.append(q.shape[2]), own(q, sight))[1])
    q, k = inputs(300)
    past = Past()
    for at in range(190, 300):
        sight = past.look(q[:, :, : at + 1] if at == 190 else q[:, :, at : at + 1], k[:, :, : at + 1])
        select(top_blocks(1, leading_query), sight)
    assert seen == [3, 1, 1, 1]


def test_it_finds_what_means_do_not_show():
    """One key of a block points where the queries look, the others away from there: their mean says nothing."""
    q, k = inputs(1024)
    q = q * 0.1 + 3
    k[:, :, 64 * 5 + 7] += 3
    k[:, :, 64 * 5 + 8] -= 3
    sight, rows = looked(q, k), torch.arange(640, 1024, 7)
    share = {scorer: kept(sight, select(window(64) | top_blocks(1, scorer), sight), rows).mean() for scorer in (leading_query, pooled_keys, oracle_blocks)}
    assert share[leading_query] > 0.9 * share[oracle_blocks]
    assert share[leading_query] > 2 * share[pooled_keys]


def test_it_can_be_written():
    from lissome.nn.attention.written import parse

    assert parse("window(64) | top_blocks(8, leading_query)").name == "window(64) | top_blocks(8, leading_query)"
    with pytest.raises(ValueError, match="chooses by queries and keys: give both"):
        select(top_blocks(1, leading_query), Sight(64, 64))
