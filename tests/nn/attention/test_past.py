"""What a decoder keeps belongs to one cache as it stands: other caches, reordered rows and rejected drafts change nothing of what one call would say."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from lissome.nn.attention import chosen, past
from lissome.nn.attention.in_transformers import use
from lissome.nn.attention.past import Past
from tests.nn.attention.test_in_transformers import ids, llama

PATTERNS = ["window(64) | top_blocks(1)", "window(64) | top_blocks(1, leading_query)", "window(64) | top_tokens(8, feature_entropy)"]
EVERY = pytest.mark.parametrize("pattern", PATTERNS)


def sharp(pattern):
    """A model whose choices show in what it says."""
    model = use(llama(), pattern)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection, by in (("q_proj", 20), ("k_proj", 20), ("v_proj", 5), ("o_proj", 5)):
                getattr(layer.self_attn, projection).weight.mul_(by)
    return model


def last(model, given):
    """What one call says after all of `given`, without a cache."""
    return model(given, use_cache=False).logits[:, -1]


def same(found, expected):
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=5e-5)


@EVERY
@torch.no_grad()
def test_requests_of_equal_length_in_turn(pattern):
    model, given = sharp(pattern), ids(330)
    caches = [DynamicCache(), DynamicCache()]
    for cache, row in zip(caches, given, strict=True):
        model(row[None, :310], past_key_values=cache)
    for at in range(310, 330):
        for cache, row in zip(caches, given, strict=True):
            found = model(row[None, at : at + 1], past_key_values=cache).logits[:, -1]
            if at % 6 == 0:
                same(found, last(model, row[None, : at + 1]))


@EVERY
@pytest.mark.parametrize("prompt", [310, 320])
@torch.no_grad()
def test_reordered_rows(pattern, prompt):
    model, given, cache = sharp(pattern), ids(324), DynamicCache()
    model(given[:, :prompt], past_key_values=cache)
    for at in range(prompt, prompt + 4):  # a beam takes the other's place, then both are of one
        order = torch.tensor([1, 0] if at < prompt + 2 else [0, 0])
        cache.reorder_cache(order)
        given = torch.cat([given[order, :at], given[:, at:]], 1)
        found = model(given[:, at : at + 1], past_key_values=cache).logits[:, -1]
        same(found, last(model, given[:, : at + 1]))


@EVERY
@pytest.mark.parametrize("kept", [310, 318])
@torch.no_grad()
def test_rejected_drafts(pattern, kept):
    model, given, cache = sharp(pattern), ids(322), DynamicCache()
    model(given[:, :kept], past_key_values=cache)
    model(given[:, :8].flip(1), past_key_values=cache)
    cache.crop(-8)
    same(model(given[:, kept : kept + 4], past_key_values=cache).logits[:, -1], last(model, given[:, : kept + 4]))


@EVERY
@torch.no_grad()
def test_a_copy_of_a_cache_goes_on_where_the_cache_stood(pattern):
    model, given, cache = sharp(pattern), ids(312), DynamicCache()
    model(given[:1, :310], past_key_values=cache)
    for other in (copy.deepcopy(cache), copy.deepcopy(cache)):
        other.batch_repeat_interleave(2)
        both = torch.cat([given[:1, :310].expand(2, -1), given[:, 310:]], 1)
        same(model(both[:, 310:], past_key_values=other).logits[:, -1], last(model, both))


@torch.no_grad()
def test_a_model_loaded_with_its_patterns_keeps_from_its_first_call_on(tmp_path):
    sharp(PATTERNS[0]).save_pretrained(tmp_path)
    model, given, cache = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="lissome").eval(), ids(311), DynamicCache()
    model(given[:, :310], past_key_values=cache)
    same(model(given[:, 310:], past_key_values=cache).logits[:, -1], last(model, given))


@torch.no_grad()
def test_a_step_reads_no_block_again(monkeypatch):
    model, given, lengths = sharp(PATTERNS[0]), ids(330), []
    own = chosen.pooled
    monkeypatch.setattr(chosen, "pooled", lambda keys, *more: (lengths.append(keys.shape[2]), own(keys, *more))[1])
    cache = DynamicCache()
    model(given[:, :310], past_key_values=cache)
    for at in range(310, 330):
        model(given[:, at : at + 1], past_key_values=cache)
    assert lengths == [256, 256, 64, 64]  # of two layers: the prompt's blocks, then the one that became complete


@torch.no_grad()
def test_nothing_outlives_its_cache():
    model, cache = sharp(PATTERNS[0]), DynamicCache()
    for _ in range(2):
        cache = DynamicCache()
        model(ids(70), past_key_values=cache)
        model(ids(1), past_key_values=cache)
    module = model.model.layers[0].self_attn
    assert len(past._PASTS[module]) == 1
    del cache
    assert not past._PASTS[module]


def test_a_row_without_its_tiles_first_query_has_none():
    q, k = torch.randn(2, 4, 100, 8), torch.randn(2, 2, 100, 8)
    kept = Past()
    kept.look(q[:, :, :90], k[:, :, :90])
    assert torch.equal(kept.look(q[:1, :, 90:91], k[1:, :, :91], goes_on=False).first, q[1:, :, 64])
    kept.look(q[:, :, :90], k[:, :, :90])
    assert kept.look(q[:, :, 90:91], k[:, :, :91].flip(3), goes_on=False).first is None
