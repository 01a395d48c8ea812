"""Documents packed in one row: each gives what it gives alone, whatever the others hold."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.nn.attention.attend import attend
from lissome.nn.attention.chosen import block_scores, hidden, important, leading_query, pooled_keys, random_blocks, top_blocks, top_share
from lissome.nn.attention.importance import Importance, entropy_tokens, feature_entropy, importance_loss, learned_importance, learned_tokens, top_tokens
from lissome.nn.attention.indexer import Indexer, indexer, indexer_loss
from lissome.nn.attention.mass import oracle_blocks
from lissome.nn.attention.patterns import Pattern, Sight, per_head, select, tokens, window

HEADS, KV, DIM = 4, 2, 16
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def scorer_of_blocks(span: int = 1) -> Indexer:
    torch.manual_seed(3)
    return Indexer(HEADS, KV, DIM, index_dim=8, span=span)


def scorer_of_tokens() -> Importance:
    torch.manual_seed(2)
    found = Importance(KV, DIM)
    torch.nn.init.normal_(found.weight)
    return found


LEARNED = {"indexer": scorer_of_blocks(), "importance": scorer_of_tokens()}
ALONE: dict[str, Pattern] = {  # those whose choice is the same where a document stands alone
    "pooled": window(16) | top_blocks(2),
    "share": window(16) | top_share(0.3),
    "leading": window(16) | top_blocks(2, leading_query),
    "leading share": top_share(0.4, leading_query) | window(64),
    "indexer": window(16) | top_blocks(2, indexer),
    "span": window(16) | top_blocks(2, scorer_of_blocks(16)),
    "oracle": window(16) | top_blocks(2, oracle_blocks),
    "rank": window(16) | top_tokens(3, feature_entropy),
    "learned rank": window(16) | top_tokens(3, learned_importance),
    "entropy": window(16) | entropy_tokens(2.3, 5),
    "learned": window(16) | learned_tokens(1.0, 5),
    "heads": per_head(window(9), window(64) | top_blocks(1)) | top_tokens(2, feature_entropy),
    "twice": window(16) | top_blocks(1) | top_tokens(2) | top_blocks(1, oracle_blocks),
}
PATTERNS = ALONE | {"lot": window(16) | top_blocks(2, random_blocks), "tokens": (window(64) | top_blocks(1, oracle_blocks)) | tokens([3, 100])}


def inputs(length: int, seed: int = 0, batch: int = 2) -> Inputs:
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, length, DIM, generator=draw) for heads in (HEADS, KV, KV))
    return q, k, v


def packed(*rows: list[int]) -> torch.Tensor:
    """Documents of these lengths, one row after the other; a negative length is padding."""
    return torch.stack([torch.cat([torch.full((abs(size),), -1 if size < 0 else number) for number, size in enumerate(row)]) for row in rows])


def given_out(pattern: Pattern, tensors: Inputs, documents: torch.Tensor | None, causal: bool) -> torch.Tensor:
    q, k, v = tensors
    sight = Sight(q.shape[2], k.shape[2], 0, HEADS, causal, q, k, **LEARNED)
    return attend(q, k, v, select(pattern, sight, documents), backend="chunked")


DOCUMENTS = packed([330, 90, 220], [-70, 40, 20, 500, -10])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_document_changes_nothing_of_another(name, causal):
    before = given_out(PATTERNS[name], inputs(640), DOCUMENTS, causal)
    for document in range(-1, 4):
        here = (document == DOCUMENTS)[:, None, :, None]
        changed = tuple(torch.where(here, 3 * other, one) for one, other in zip(inputs(640), inputs(640, 1), strict=True))
        after = given_out(PATTERNS[name], changed, DOCUMENTS, causal)
        torch.testing.assert_close(after.masked_fill(here, 0), before.masked_fill(here, 0), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ALONE)
def test_a_document_that_begins_with_a_tile_gives_what_it_gives_alone(name, causal):
    """Before it one that fills its tiles, and one that does not; behind it another that begins in its last tile."""
    q, k, v = inputs(640, batch=1)
    documents = packed([64, 100, -28, 300, 148])
    for document in (0, 1, 3):
        here = (documents[0] == document).nonzero()[:, 0]
        alone = given_out(ALONE[name], (q[:, :, here], k[:, :, here], v[:, :, here]), None, causal)
        found = given_out(ALONE[name], (q, k, v), documents, causal)[:, :, here]
        torch.testing.assert_close(found, alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scorer", [pooled_keys, leading_query, oracle_blocks, random_blocks, scorer_of_blocks(4)])
def test_the_whole_budget_is_spent_on_the_own_document(scorer):
    q, k, _ = inputs(640, batch=1)
    sight = Sight(640, 640, 0, HEADS, True, q, k)
    documents = packed([320, 320])
    seen = select(top_blocks(2, scorer), sight, documents).dense()
    assert bool((seen[:, :, 448:].sum(-1) == 128).all())
    assert not bool(seen[:, :, 320:384].any())  # no block of the document ends before its first tile
    shared = select(top_share(0.5, scorer), sight, documents).dense().sum(-1)
    assert bool((shared[:, :, 576:] == 128).all()), "half of the four blocks of the document before the tile"


def test_budgets_of_global_tokens_are_of_each_document():
    q, k, _ = inputs(200)
    sight = Sight(200, 200, 0, HEADS, False, q, k)
    documents = packed([100, 100], [-20, 80, 100])
    for pattern in (important(torch.ones(2, 200), 0.5, 7), top_tokens(7), entropy_tokens(0.0, 7)):
        counts = select(pattern, sight, documents).dense().sum(-1)
        assert bool((counts == torch.where(documents < 0, 0, 7)[:, None]).all())


@pytest.mark.parametrize("name", ["pooled", "leading", "indexer", "oracle", "rank", "entropy", "twice"])
@given(begin=st.integers(1, 600), sizes=st.lists(st.integers(1, 250), min_size=1, max_size=8))
@settings(max_examples=5, deadline=None)
def test_the_last_queries_choose_what_one_call_chooses(name, begin, sizes):
    """Queries from anywhere on; the first of a tile that has begun before them is given."""
    begin = begin % sum(sizes)
    q, k, _ = inputs(sum(sizes), batch=1)
    if name in ("oracle", "twice"):  # the oracle asks all queries of a tile
        begin = begin // 64 * 64
    sight = Sight(q.shape[2], k.shape[2], 0, HEADS, True, q, k, **LEARNED)
    later = dataclasses.replace(sight, queries=q.shape[2] - begin, offset=begin, q=q[:, :, begin:], first=q[:, :, begin // 64 * 64] if begin % 64 else None)
    whole, part = (select(PATTERNS[name], one, packed(sizes)).dense() for one in (sight, later))
    assert torch.equal(part, whole[:, :, begin:])


@pytest.mark.parametrize("loss", [indexer_loss, importance_loss])
def test_the_losses_ask_for_what_is_chosen(loss):
    """Of each document as alone; a row of another document than its tile's asks for no blocks."""
    q, k, _ = inputs(640, batch=1)
    scorer, documents = LEARNED["indexer" if loss is indexer_loss else "importance"], packed([320, 310, 10])
    sight, rows = Sight(640, 640, 0, HEADS, True, q, k), torch.arange(600, 630)
    sight = dataclasses.replace(sight, documents=documents, shown=select(window(16), sight, documents))
    short = Sight(310, 310, 0, HEADS, True, q[:, :, 320:630], k[:, :, 320:630])
    alone = loss(scorer, dataclasses.replace(short, shown=select(window(16), short)), rows - 320)
    assert float(alone) > 0
    torch.testing.assert_close(loss(scorer, sight, rows), alone)
    assert float(loss(scorer, sight, torch.arange(630, 640))) == 0
    loss(scorer, sight, rows).backward()
    assert all(bool(torch.isfinite(one.grad).all()) for one in scorer.parameters())


def test_scores_of_some_tiles_are_theirs():
    q, k, _ = inputs(640)
    sight = Sight(640, 640, 0, HEADS, True, q, k, documents=DOCUMENTS)
    whole, tiles = block_scores(pooled_keys, sight), torch.tensor([0, 4, 9])
    assert torch.equal(block_scores(pooled_keys, sight, tiles), whole[:, :, tiles])
    assert bool(hidden(sight, 10)[1, :, 0].all()), "a tile that begins with padding chooses nothing"
