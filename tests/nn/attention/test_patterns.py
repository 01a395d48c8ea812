"""Patterns show what their definition says, whatever the lengths; none shows the future."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lissome.core.errors import BadConfig, BadTensor
from lissome.kernels.library import library
from lissome.nn.attention import attend as attending
from lissome.nn.attention.attend import attend
from lissome.nn.attention.chosen import entropy, important, pooled, pooled_keys, random_blocks, top_blocks
from lissome.nn.attention.patterns import Sight, causal, everything, from_first, multi_scale, per_head, select, sink, strided, tokens, window

HEADS, KV = 6, 3
BACKENDS = ["chunked", "reference", *(["native"] if library().handle else [])]


def near(width):
    return lambda i, j, h: (i - j).abs() < width


PLAIN = [  # a pattern, and what it means
    (window(50), near(50)),
    (window(1), near(1)),
    (sink(3), lambda i, j, h: (j < 3) & (i >= 0)),
    (window(64) | sink(70), lambda i, j, h: near(64)(i, j, h) | (j < 70)),
    (everything(), lambda i, j, h: (i >= 0) & (j >= 0)),
    (from_first(2) | window(10), lambda i, j, h: (i < 2) | near(10)(i, j, h)),
    (window(100) & sink(80), lambda i, j, h: near(100)(i, j, h) & (j < 80)),
    (window(20) | tokens([0, 9, 64, 130]), lambda i, j, h: near(20)(i, j, h) | sum((j == at for at in (0, 9, 64, 130)), j < 0)),
    ((window(20) | tokens([5, 70])) & window(40), lambda i, j, h: near(20)(i, j, h) | (((j == 5) | (j == 70)) & near(40)(i, j, h))),
    (window(9) | strided(16, 300), lambda i, j, h: near(9)(i, j, h) | ((j % 16 == 15) & (j < 300) & (i >= 0))),
    (multi_scale(8, 64, 100), lambda i, j, h: near((8, 64, 100)[h % 3])(i, j, h)),
    (per_head(window(20), window(70) | sink(1)) | tokens([3]), lambda i, j, h: near((20, 70)[h % 2])(i, j, h) | (j == 3) | ((j == 0) & (h % 2 == 1))),
]


@pytest.mark.parametrize(("pattern", "meaning"), PLAIN, ids=[pattern.name for pattern, _ in PLAIN])
@given(queries=st.integers(1, 200), offset=st.sampled_from([0, 1, 63, 64, 130]), both_ways=st.booleans(), split=st.booleans())
@settings(max_examples=15, deadline=None)
def test_a_pattern_shows_what_it_means(pattern, meaning, queries, offset, both_ways, split):
    keys = queries + offset
    documents = torch.stack([torch.arange(keys) // 37, torch.where(torch.arange(keys) < 5, -1, torch.arange(keys) // 100)]) if split else None
    found = select(pattern, Sight(queries, keys, offset, HEADS, causal=not both_ways), documents).dense()
    i, j = torch.arange(offset, keys)[:, None], torch.arange(keys)[None]
    for head in range(HEADS):
        right = meaning(i, j, head) & (torch.ones_like(j <= i) if both_ways else j <= i)
        for batch in range(2 if split else 1):
            own = right & (documents[batch][i] == documents[batch][j]) & (documents[batch][j] >= 0) if split else right
            assert torch.equal(found[batch, head % found.shape[1]], own)


def inputs(length, seed=0, dim=16):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, heads, length, dim, generator=generator) for heads in (HEADS, KV, KV)]


def looked(q, k, offset=0, **more):
    return Sight(q.shape[2], k.shape[2], offset, q.shape[1], q=q, k=k, **more)


def two_futures(length, at):
    """Inputs, and the same with another future after position `at`."""
    one, other = inputs(length), [tensor.clone() for tensor in inputs(length)]
    for tensor in other:
        tensor[:, :, at + 1 :] = 3 * torch.randn_like(tensor[:, :, at + 1 :])
    return one, other


def same_past(before, after, backend):
    """Equal bits; in matrix products as wide as the widest tile's choice, which may be a later one, equal but for the order of sums."""
    torch.testing.assert_close(before, after, atol=1e-6 if backend == "chunked" else 0, rtol=0)


CHOSEN = [
    window(70) | top_blocks(2),
    window(30) | sink(4) | top_blocks(1) | tokens([3, 100]),
    top_blocks(2, random_blocks) | window(64),
    per_head(window(20), window(90)) | top_blocks(3),
    multi_scale(32, 64, 128) | sink(1),
]


@pytest.mark.parametrize("pattern", CHOSEN, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@given(length=st.integers(2, 330), data=st.data())
@settings(max_examples=8, deadline=None)
def test_nothing_depends_on_the_future(pattern, backend, length, data):
    at = data.draw(st.integers(0, length - 2))
    before, after = (attend(*given, select(pattern, looked(*given[:2])), backend=backend)[:, :, : at + 1] for given in two_futures(length, at))
    same_past(before, after, backend)


def test_global_tokens_by_threshold_do_not_depend_on_the_future():
    q, k, v = inputs(200)
    scores = torch.rand(2, 200)
    changed = scores.clone()
    changed[:, 120:] = 1 - changed[:, 120:]
    outs = [attend(q, k, v, select(window(16) | important(one, 0.9), looked(q, k)))[:, :, :120] for one in (scores, changed)]
    assert torch.equal(*outs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 64, 200])
def test_choosing_everything_is_dense_attention(backend, length):
    q, k, v = inputs(length)
    expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    for pattern in (everything(), window(64) | top_blocks(length), causal()):
        torch.testing.assert_close(attend(q, k, v, select(pattern, looked(q, k)), backend=backend), expected, atol=1e-5, rtol=1e-5)


def test_the_blocks_that_matter_are_found():
    """A key that every query matches stands in block 2: pooled keys find it."""
    q, k, _ = inputs(640, dim=32)
    q, k = q * 0.1 + 1, k * 0.1
    k[:, :, 150] = 20.0
    chosen = select(window(64) | top_blocks(1), looked(q, k))
    assert bool((chosen.blocks[:, :, 4:] == 2).any(-1).all())


def test_tiles_that_begin_before_the_first_query_choose_by_their_own_first_query():
    q, k, v = inputs(200)
    pattern = window(40) | top_blocks(1)
    whole = attend(q, k, v, select(pattern, looked(q, k)))
    part = attend(q[:, :, 150:], k, v, select(pattern, looked(q[:, :, 150:], k, 150, first=q[:, :, 128])))
    torch.testing.assert_close(part, whole[:, :, 150:], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS[:1])
def test_gradients_are_right(backend):
    q, k, v = (tensor.double().requires_grad_() for tensor in inputs(70, dim=3))
    selection = select(window(20) | top_blocks(1) | tokens([2]), looked(q.detach(), k.detach()))
    assert torch.autograd.gradcheck(lambda *given: attend(*given, selection, backend=backend), (q, k, v), atol=1e-6, fast_mode=True)


def test_gradients_of_all_backends_agree():
    found = []
    for backend in BACKENDS:
        q, k, v = (tensor.requires_grad_() for tensor in inputs(200))
        selection = select(window(50) | top_blocks(1) | tokens([2, 90]), looked(q.detach(), k.detach()))
        attend(q, k, v, selection, backend=backend).square().sum().backward()
        found.append((q.grad, k.grad, v.grad))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_pooled_keys_are_means():
    keys = torch.randn(1, 2, 130, 8)
    found = pooled(keys)
    torch.testing.assert_close(found[:, :, 2], keys[:, :, 128:].mean(2))
    torch.testing.assert_close(found[:, :, 1], keys[:, :, 64:128].mean(2))
    assert pooled_keys(torch.randn(1, 4, 3, 8), Sight(130, 130, k=keys)).shape == (1, 4, 3, 3)


def test_entropy_is_highest_where_all_is_equally_likely():
    assert entropy(torch.zeros(5)).item() == pytest.approx(torch.tensor(5.0).log().item())
    assert entropy(torch.tensor([50.0, 0, 0])).item() == pytest.approx(0, abs=1e-6)


def test_a_pattern_draws_itself():
    lines = (window(64) | sink(16)).draw(512, cells=16).splitlines()
    assert len(lines) == 16
    assert lines[-1] == "**" + " " * 24 + "::##**"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: window(0), "window: 0 is too small"),
        (lambda: sink(0), "sink: 0 is too small"),
        (lambda: top_blocks(0), "top_blocks: 0 is too small"),
        (lambda: window(1.5), r"window: 1\.5 is no whole number"),
        (lambda: window(float("nan")), "window: nan is no whole number"),
        (lambda: window(True), "window: True is no whole number"),
        (lambda: top_blocks(2.0), r"top_blocks: 2\.0 is no whole number"),
        (lambda: strided(0.5, 9), r"strided: 0\.5 is no whole number"),
        (lambda: tokens([-1]), "positions are counted from 0: -1 is too small"),
        (lambda: tokens([2, 1.5]), r"positions are counted from 0: 1\.5 is no whole number"),
        (lambda: per_head(window(2), 3), "per_head: 3 is no pattern"),
        (lambda: per_head(), "give at least one pattern"),
        (lambda: window(3) & top_blocks(1), "must be a rule"),
        (lambda: select(top_blocks(1), Sight(9, 9)), "chooses by queries and keys"),
        (lambda: select(window(2), Sight(9, 9), torch.zeros(9)), r"documents must be \[batch, keys = 9\]"),
        (lambda: select(important(torch.zeros(1, 8), 0.5), Sight(9, 9)), r"importance must be \[batch, keys = 9\]"),
        (lambda: important(torch.zeros(1, 8), 0.5, 0), "at least 1"),
    ],
)
def test_what_makes_no_sense_is_said(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_what_attend_cannot_take_is_named_with_its_shape():
    q, k, v = inputs(40)
    good = select(window(8), Sight(40, 40))
    for tensors, said in [
        ((q[0], k, v), r"\[6, 40, 16\].*do not fit"),
        ((q, k, v.double()), "different types"),
        ((q.int(), k.int(), v.int()), "not floats"),
        ((q, k[:, :, :30], v), "do not fit each other"),
        ((q[:, :4], k, v), "heads a multiple of kv_heads"),
        ((q, k[..., :8], v), "q and k of one dim"),
        ((q[:, :, :30], k, v), "the selection is for 40 queries"),
    ]:
        with pytest.raises(ValueError, match=said):
            attend(*tensors, good)
    with pytest.raises(ValueError, match="are on cpu, meta and cpu"):
        attend(q, k.to("meta"), v, good)
    with pytest.raises(ValueError, match=r"q \[2, 6, 40, 0\].*nothing to attend with"):
        attend(q[..., :0], k[..., :0], v, good)
    with pytest.raises(ValueError, match=r"q \[2, 6, 0, 16\].*nothing to attend with"):
        attend(q[:, :, :0], k, v, good)
    with pytest.raises(ValueError, match="takes a selection, not Union"):
        attend(q, k, v, window(8) | top_blocks(1))
    with pytest.raises(ValueError, match="blocks from 9 to 9, which must be from -1 to 0"):
        attend(q, k, v, dataclasses.replace(good, blocks=good.blocks + 9))
    with pytest.raises(BadConfig, match=r'no attention backend "nativ"\. Did you mean "native"'):
        attend(q, k, v, good, backend="nativ")
    with pytest.raises(ValueError, match="selection is for batch 1 and 4 heads"):
        attend(q, k, v, select(multi_scale(4, 8), Sight(40, 40, heads=4)))
    with pytest.raises(ValueError, match=r"native kernel cannot take.*float64"):
        attend(q.double(), k.double(), v.double(), good, backend="native")
    with pytest.raises(ValueError, match="not finite"):
        attend(q, k, torch.full_like(v, float("nan")), good)
    with pytest.raises(ValueError, match="not finite"):
        attend(torch.full_like(q, float("inf")), k, v, good)


def test_the_selection_follows_the_queries_to_their_device(monkeypatch):
    q, k, v = (tensor.to("meta") for tensor in inputs(40))
    given = []
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which knows no meta tensors
    monkeypatch.setitem(attending._WHOLE, "reference", lambda q, k, v, selection, scale: given.append(selection.bits.device.type) or torch.zeros(1))
    attend(q, k, v, select(window(8), Sight(40, 40)), backend="reference")
    assert given == ["meta"]


def test_what_a_pattern_cannot_look_at_is_named_with_its_shape():
    q, k, _ = inputs(40)
    for changed, said in [
        ({"queries": 0}, "0 queries from 0 on among 40 keys"),
        ({"queries": 0, "keys": 0}, "0 queries from 0 on among 0 keys"),
        ({"offset": -1}, "40 queries from -1 on among 40 keys"),
        ({"offset": 1}, "40 queries from 1 on among 40 keys"),
        ({"queries": 30}, r"q \[2, 6, 40, 16\] is not that of 6 heads and 30 queries"),
        ({"heads": 3}, r"q \[2, 6, 40, 16\] is not that of 3 heads and 40 queries"),
        ({"q": q[0]}, r"q \[6, 40, 16\] is not that of"),
        ({"k": k[:, :, :30]}, r"k \[2, 3, 30, 16\] is not that of 40 keys"),
        ({"k": k[:1]}, r"q \[2, 6, 40, 16\] and k \[1, 3, 40, 16\] do not fit each other"),
        ({"q": q[:, :4], "heads": 4}, r"q \[2, 4, 40, 16\] and k \[2, 3, 40, 16\] do not fit each other"),
        ({"documents": torch.zeros(2, 40)}, "documents are numbers of documents, not torch.float32"),
        ({"documents": torch.ones(2, 40, dtype=torch.bool)}, "documents are numbers of documents, not torch.bool"),
        ({"documents": torch.zeros(3, 40, dtype=torch.int64)}, r"documents must be \[batch, keys = 40\], not \[3, 40\], for a batch of 2"),
    ]:
        with pytest.raises(BadTensor, match=said):
            Sight(**{"queries": 40, "keys": 40, "heads": HEADS, "q": q, "k": k, **changed})
    with pytest.raises(BadTensor, match=r"documents \[3, 40\] do not fit a pattern for a batch of 2"):
        select(important(torch.ones(2, 40), 0.5), Sight(40, 40), torch.zeros(3, 40, dtype=torch.int64))


def test_heads_are_those_of_the_queries():
    q, k, _ = inputs(40)
    assert Sight(40, 40, q=q, k=k).heads == HEADS
    assert select(multi_scale(4, 8), Sight(40, 40, q=q, k=k)).blocks.shape[1] == HEADS


@pytest.mark.parametrize("pattern", [window(20) | tokens([3]), window(20) | top_blocks(1)], ids=str)
def test_documents_of_one_sequence_are_those_of_all(pattern):
    q, k, _ = inputs(150)
    one = torch.arange(150)[None] // 70
    assert torch.equal(
        select(pattern, looked(q, k), one).dense().expand(2, HEADS, -1, -1), select(pattern, looked(q, k), one.expand(2, -1)).dense().expand(2, HEADS, -1, -1)
    )


@pytest.mark.parametrize("make", [top_blocks, sink, lambda count: window(9) | tokens([3, count])])
def test_more_than_there_is_shows_all_there_is(make):
    q, k, _ = inputs(150)
    assert bool((select(make(10_000), looked(q, k)).dense() == select(make(150), looked(q, k)).dense()).all())
