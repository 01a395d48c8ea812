"""Learned scorers in transformers models: attached, kept beside the model, and the same token by token."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lissome.core.errors import BadConfig, BadModel
from lissome.nn.attention.in_transformers import use
from lissome.nn.attention.indexer import Indexer
from lissome.nn.attention.learned import FILE, attach, load_indexers, save_indexers, scorers
from lissome.nn.attention.variants import VARIANTS
from lissome.nn.attention.written import parse
from tests.nn.attention.test_in_transformers import SIZES, bert, ids, llama, stepped

BOTH = "window(40) | top_blocks(1, indexer) | top_tokens(4, learned_importance)"


def stirred(model):
    """The learned scorers away from where they begin."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".indexer." in name or ".importance." in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("pattern", [BOTH, "top_share(0.5, indexer) | window(9)", "window(9) | entropy_tokens(1.9, 12)", *VARIANTS])
@pytest.mark.parametrize("prompt", [1, 64, 150])
@torch.no_grad()
def test_prefill_and_steps_equal_one_call(pattern, prompt):
    model, given = stirred(use(llama(), pattern)), ids(220)
    whole, found = model(given, use_cache=False).logits, stepped(model, given, (prompt, 1, 1, 62, 1, 1, 1))
    torch.testing.assert_close(found, whole[:, : found.shape[1]], atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("make", [llama, bert])
@pytest.mark.parametrize("pattern", ["window(64) | top_blocks(9, indexer)", "window(64) | top_share(1.0)", "window(200) | top_tokens(9)"])
@torch.no_grad()
def test_choosing_everything_is_the_dense_model_with_padding_too(make, pattern):
    given, padding = ids(150), torch.ones(2, 150, dtype=torch.long)
    padding[1, 100:] = 0
    dense = make()(given, attention_mask=padding).logits
    found = use(make(), pattern)(given, attention_mask=padding).logits
    real = slice(None) if dense.ndim == 2 else padding.bool()
    torch.testing.assert_close(found[real], dense[real], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_an_encoder_takes_every_variant_and_padding_says_nothing(name):
    model, given = use(bert(), name), ids(200)
    padding = torch.ones(2, 200, dtype=torch.long)
    padding[:, 130:] = 0
    other = torch.where(padding.bool(), given, 7)
    assert torch.equal(model(given, attention_mask=padding).logits, model(other, attention_mask=padding).logits)


@torch.no_grad()
def test_scorers_are_kept_beside_the_model_and_come_back_with_it(tmp_path):
    model = stirred(use(llama(), [BOTH, "window(9)"]))
    logits = model(ids(150)).logits
    assert not hasattr(model.model.layers[1].self_attn, "indexer")
    model.save_pretrained(tmp_path)
    assert save_indexers(model, tmp_path).name == FILE
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(use(again, [BOTH, "window(9)"])(ids(150)).logits, logits)
    fresh = use(llama(), [BOTH, "window(9)"])
    assert not torch.equal(fresh(ids(150)).logits, logits)
    assert torch.equal(load_indexers(fresh, tmp_path)(ids(150)).logits, logits)


def test_a_pattern_that_asks_again_keeps_the_scorers_and_sizes_are_kept(tmp_path):
    model = llama()
    attach(model, lambda layer: {"indexer"}, index_heads=1, index_dim=4, span=16)
    before = model.model.layers[0].self_attn.indexer
    assert use(model, BOTH).model.layers[0].self_attn.indexer is before
    save_indexers(model, tmp_path)
    found = load_indexers(llama(), tmp_path).model.layers[1].self_attn.indexer
    assert (found.index_heads, found.index_dim, found.span) == (1, 4, 16)


def test_training_the_model_leaves_the_indexer_alone():
    model = use(llama().train(), BOTH)
    model(ids(150), labels=ids(150)).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (".indexer." in name or ".importance." in name)


def test_patterns_tell_which_scorers_they_name():
    assert scorers(parse(BOTH)) == {"indexer", "importance"}
    assert scorers(parse("per_head(window(3), (window(9) | top_blocks(1, indexer)) & window(40))")) == {"indexer"}
    assert scorers(parse("window(9) | learned_tokens(0.5, 3)")) == {"importance"}
    assert scorers(parse("window(9) | top_blocks(1) | top_tokens(2)")) == set()


def test_what_does_not_fit_is_said(tmp_path):
    with pytest.raises(BadModel, match="no saved indexers"):
        load_indexers(llama(), tmp_path)
    with pytest.raises(BadModel, match="no learned scorers to save"):
        save_indexers(llama(), tmp_path)
    save_indexers(use(llama(), BOTH), tmp_path)
    with pytest.raises(BadModel, match="made for another layer"):
        load_indexers(LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2)), tmp_path)
    with pytest.raises(BadModel, match=r'a scorer for "model\.layers\.0\.self_attn", which this model does not have'):
        load_indexers(bert(), tmp_path)
    save_file({"x": torch.zeros(1)}, str(tmp_path / FILE))
    with pytest.raises(BadModel, match="does not hold indexers"):
        load_indexers(llama(), tmp_path)
    (tmp_path / FILE).write_bytes(b"no such thing")
    with pytest.raises(BadModel, match="cannot be read"):
        load_indexers(llama(), tmp_path)
    model = use(llama(), "window(9) | top_blocks(1, indexer)")
    del model.model.layers[0].self_attn.indexer
    with pytest.raises(BadConfig, match=r"names an indexer, and this layer has none\n.*call use"):
        model(ids(150))
    model.model.layers[0].self_attn.indexer = Indexer(6, 3, 4)
    with pytest.raises(ValueError, match="made for 6 heads and 3 key heads of 4"):
        model(ids(150))
