"""A transformers model with a pattern: everything visible gives the dense model's logits, and a decoder says token by token what it says in one go."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from lissome.core.errors import BadConfig
from lissome.nn.attention.in_transformers import FIELD, use
from lissome.nn.attention.learned import attach

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 97, "max_position_embeddings": 512}


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=6, num_key_value_heads=3)).eval()


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES, num_attention_heads=6)).eval()


def ids(length, batch=2):
    return torch.randint(5, 97, (batch, length), generator=torch.Generator().manual_seed(1))


def stepped(model, given, steps):
    """Logits of a decoder that takes `steps` tokens at a time."""
    found, state, at = [], None, 0
    for step in steps:
        if at < given.shape[1]:
            state = model(given[:, at : at + step], past_key_values=None if state is None else state.past_key_values, use_cache=True)
            found.append(state.logits)
        at += step
    return torch.cat(found, 1)


@pytest.mark.parametrize("make", [llama, bert])
@pytest.mark.parametrize("length", [3, 64, 200])
@torch.no_grad()
def test_everything_visible_is_the_dense_model(make, length):
    given, padding = ids(length), torch.ones(2, length, dtype=torch.long)
    padding[1, length - length // 3 :] = 0
    for attention_mask in (None, padding):
        dense = make()(given, attention_mask=attention_mask).logits
        found = use(make(), "everything()")(given, attention_mask=attention_mask).logits
        real = slice(None) if attention_mask is None or dense.ndim == 2 else attention_mask.bool()
        torch.testing.assert_close(found[real], dense[real], atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_left_padding_changes_nothing_but_padding():
    given = ids(90, 1)
    padded = torch.cat([torch.zeros(1, 10, dtype=torch.long), given], 1)
    seen = torch.cat([torch.zeros(1, 10, dtype=torch.long), torch.ones(1, 90, dtype=torch.long)], 1)
    model = use(llama(), "window(200)")
    places = torch.cat([torch.zeros(1, 10, dtype=torch.long), torch.arange(90)[None]], 1)
    torch.testing.assert_close(model(padded, attention_mask=seen, position_ids=places).logits[:, 10:], model(given).logits, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("pattern", ["window(40)", "window(40) | sink(4) | top_blocks(1)", "multi_scale(16, 32, 64) | tokens([3, 70])"])
@pytest.mark.parametrize("prompt", [1, 63, 64, 150])
@torch.no_grad()
def test_prefill_and_steps_equal_one_call(pattern, prompt):
    model, given = use(llama(), pattern), ids(220)
    whole, found = model(given, use_cache=False).logits, stepped(model, given, (prompt, 1, 1, 1, 70, 1, 1))  # steps of one, and one that crosses tiles
    torch.testing.assert_close(found, whole[:, : found.shape[1]], atol=5e-5, rtol=5e-5)


PADDED = [
    "window(20) | top_blocks(1)",
    "window(20) | top_share(0.4)",
    "window(20) | top_blocks(1, leading_query)",
    "window(20) | top_blocks(1, indexer)",
    "window(20) | top_tokens(4, feature_entropy)",
]


def sharp():
    """A decoder whose attention is far from even, so that what is chosen matters; its indexers look at 16 keys at once."""
    model = llama()
    attach(model, lambda layer: {"indexer"}, span=16)
    with torch.no_grad():
        for layer in model.model.layers:
            for part, factor in (("q_proj", 20), ("k_proj", 20), ("v_proj", 5), ("o_proj", 5)):
                getattr(layer.self_attn, part).weight.mul_(factor)
    return model


@pytest.mark.parametrize("pattern", PADDED)
@torch.no_grad()
def test_what_stands_in_padding_changes_nothing(pattern):
    """A batch padded on the left and in between, in one call, and in a prompt and steps that go on from its cache."""
    model, real = use(sharp(), pattern), torch.ones(2, 280, dtype=torch.long)
    real[0, :100] = 0
    real[1, 120:150] = 0  # as where an answer follows a prompt that was padded behind
    places = (real.cumsum(1) - 1).clamp(min=0)
    found = []
    for pad in (0, 7):
        given = ids(280).masked_fill(real == 0, pad)
        for cuts in ([280], [250, *[1] * 8, 22]):
            logits, state, at = [], None, 0
            for cut in cuts:
                here = slice(at, at + cut)
                state = model(
                    given[:, here],
                    attention_mask=real[:, : at + cut],
                    position_ids=places[:, here],
                    past_key_values=None if state is None else state.past_key_values,
                )
                logits.append(state.logits)
                at += cut
            found.append(torch.cat(logits, 1)[real.bool()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=5e-4, rtol=5e-4)


@torch.no_grad()
def test_generation_is_that_of_the_dense_model_when_all_is_visible():
    given = ids(70, 1)
    dense = llama().generate(given, max_new_tokens=12, do_sample=False)
    assert torch.equal(use(llama(), "window(500)").generate(given, max_new_tokens=12, do_sample=False), dense)


@torch.no_grad()
def test_layers_have_patterns_of_their_own_and_the_configuration_keeps_them(tmp_path):
    model = use(llama(), ["window(8)", None])
    logits = model(ids(100)).logits
    assert not torch.equal(logits, use(llama(), "window(8)")(ids(100)).logits)
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="lissome").eval()
    assert getattr(again.config, FIELD) == ["window(8)", None]
    torch.testing.assert_close(again(ids(100)).logits, logits)


def test_a_sparse_model_trains():
    model = use(llama().train(), "window(40) | top_blocks(1)")
    model(ids(150), labels=ids(150)).loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_what_does_not_fit_is_said():
    with pytest.raises(BadConfig, match="3 patterns for 2 layers"):
        use(llama(), ["window(3)"] * 3)
    with pytest.raises(BadConfig, match="there is no pattern"):
        use(llama(), "widow(3)")
    model = use(llama().train(), "window(3)")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(BadConfig, match=r"dropout of 0\.1"):
        model(ids(10))
