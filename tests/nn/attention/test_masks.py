"""What a transformers model hides besides the future: padding and packed documents are honoured, everything else is refused by name."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.masking_utils import and_masks, causal_mask_function, or_masks

from lissome.core.errors import BadModel, BadTensor
from lissome.nn.attention.in_transformers import use
from lissome.nn.attention.masks import check_positions, documents
from tests.nn.attention.test_in_transformers import SIZES, bert, ids, llama

HEADS = SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}


def mistral(window=16):
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**HEADS, sliding_window=window)).eval()


def marian(places=64):
    sizes = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}
    tokens = {"pad_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": None}
    torch.manual_seed(0)
    return MarianMTModel(MarianConfig(vocab_size=97, d_model=32, max_position_embeddings=places, **sizes, **tokens)).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2)).eval()


@pytest.mark.parametrize("make", [gpt2, lambda: Qwen2ForCausalLM(Qwen2Config(**HEADS)).eval(), lambda: mistral(60)], ids=["gpt2", "qwen2", "mistral"])
@torch.no_grad()
def test_decoders_with_everything_visible_say_what_they_said(make):
    model, given = make(), ids(50, 1)
    expected = model(given).logits, model.generate(given, max_new_tokens=9, do_sample=False, pad_token_id=0)
    use(model, "everything()")
    torch.testing.assert_close(model(given).logits, expected[0], atol=2e-5, rtol=2e-5)
    assert torch.equal(model.generate(given, max_new_tokens=9, do_sample=False, pad_token_id=0), expected[1])


@pytest.mark.parametrize("patterns", [["everything()"] * 2, [None, None], ["window(500)", None]])
@torch.no_grad()
def test_packed_documents_are_apart(patterns):
    given, places = ids(150), torch.cat([torch.arange(90), torch.arange(60)])[None]
    model = use(llama(), patterns)
    found = model(given, position_ids=places, use_cache=False).logits
    apart = torch.cat([model(given[:, :90]).logits, model(given[:, 90:]).logits], 1)
    torch.testing.assert_close(found, apart, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_masks_of_pairs_are_refused():
    pairs = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril()
    for patterns in (["window(8)"] * 2, [None, None]):
        model = use(llama(), patterns)
        for mask, dtype in ((pairs, "bool"), (pairs.float(), "float32")):
            with pytest.raises(BadTensor, match=rf"must be \[batch, keys\] = \[2, 20\], and this one is \[2, 1, 20, 20\] {dtype}"):
                model(ids(20), attention_mask=mask)
        with pytest.raises(BadTensor, match=r"must be \[batch, keys\] = \[2, 20\], and this one is \[2, 15\]"):
            model(ids(20), attention_mask=torch.ones(2, 15), past_key_values=DynamicCache())


@torch.no_grad()
def test_windows_are_refused_where_they_hide_something():
    model = use(mistral(), "everything()")
    assert model(ids(16)).logits.shape == (2, 16, 97)
    with pytest.raises(BadModel, match="MistralConfig: its window of 16 tokens hides some of 17 keys"):
        model(ids(17))
    with pytest.raises(BadModel, match="its window of 16 tokens hides"):
        model.generate(ids(12, 1), max_new_tokens=9, do_sample=False, pad_token_id=0)
    dense = mistral()(ids(40)).logits
    model.config.sliding_window = None
    torch.testing.assert_close(use(model, "window(16)")(ids(40)).logits, dense, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_what_attention_functions_are_handed_is_refused():
    gemma = Gemma2ForCausalLM(Gemma2Config(**HEADS, head_dim=8, attn_logit_softcapping=1.0)).eval()
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    oss = GptOssForCausalLM(GptOssConfig(**HEADS, head_dim=8, num_local_experts=2, num_experts_per_tok=1, rope_parameters=rope)).eval()
    for model, words in ((gemma, r"Gemma2Attention: this attention caps its scores \(softcap\)"), (oss, r"learned sinks \(s_aux\)")):
        with pytest.raises(BadModel, match=r"layer 0, " + (words if model is gemma else ".*" + words)):
            use(model, "everything()")(ids(10))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, dropout_rate=0.0)).eval()
    with pytest.raises(BadModel, match=r"a bias for positions to its scores \(position_bias\)"):
        use(t5, "everything()")(input_ids=ids(10), decoder_input_ids=ids(3))


@torch.no_grad()
def test_caches_of_fixed_size_are_refused():
    model = use(llama(), "window(500)")
    with pytest.raises(BadModel, match="128 keys for tokens that end at 50: the cache has a fixed size"):
        model(ids(50), past_key_values=StaticCache(config=model.config, max_cache_len=128))


def test_masks_of_unknown_make_are_refused():
    def pictures(batch, head, q, k):
        return k < 3

    assert documents(and_masks(causal_mask_function, and_masks(causal_mask_function)), 30, "it") is None
    with pytest.raises(BadModel, match="it: its attention is masked by or_masks"):
        documents(or_masks(causal_mask_function, pictures), 30, "it")
    with pytest.raises(BadModel, match="masked by test_masks_of_unknown_make_are_refused of tests"):
        documents(and_masks(causal_mask_function, pictures), 30, "it")


def roberta():
    return RobertaForSequenceClassification(RobertaConfig(**SIZES | {"max_position_embeddings": 130}, num_attention_heads=6, pad_token_id=1)).eval()


@pytest.mark.parametrize(
    ("make", "places", "who"),
    [(llama, 512, "LlamaModel"), (bert, 512, "BertModel"), (roberta, 128, "RobertaModel"), (gpt2, 64, "GPT2Model")],
    ids=lambda one: getattr(one, "__name__", one),
)
@torch.no_grad()
def test_more_tokens_than_positions_are_refused(make, places, who):
    model = use(make(), "window(8)")
    assert model(ids(places, 1)).logits is not None
    with pytest.raises(BadTensor, match=f"{places + 1} tokens are more than the {places} positions of {who}"):
        model(ids(places + 1, 1))


@torch.no_grad()
def test_positions_of_a_decoder_count_what_its_cache_holds(tmp_path):
    model = use(gpt2(), "window(8)")
    cache = model(ids(60), use_cache=True).past_key_values
    model(ids(4), past_key_values=cache)
    with pytest.raises(BadTensor, match="65 tokens are more than the 64 positions"):
        model(ids(1), past_key_values=cache)
    use(llama(), "window(8)").save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="lissome")
    with pytest.raises(BadTensor, match="513 tokens are more than the 512 positions of layer 0, LlamaAttention"):
        loaded(ids(513, 1))


@torch.no_grad()
def test_positions_of_an_encoder_and_its_decoder_count_apart():
    model = use(marian(), "window(8)")
    cache = model(input_ids=ids(60), decoder_input_ids=ids(50), use_cache=True).past_key_values
    assert model(input_ids=ids(60), decoder_input_ids=ids(1), past_key_values=cache).logits.shape == (2, 1, 97)
    for given, to in ((65, 3), (3, 65)):
        with pytest.raises(BadTensor, match="65 tokens are more than the 64 positions of Marian"):
            model(input_ids=ids(given), decoder_input_ids=ids(to))


@torch.no_grad()
def test_positions_that_are_given_count_and_not_the_tokens():
    model = use(llama(), "window(8)")
    packed = torch.cat([torch.arange(300), torch.arange(300)])[None]
    assert model(ids(600, 1), position_ids=packed, use_cache=False).logits.shape == (1, 600, 97)
    model.config.rope_parameters = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    check_positions(model.config, 600, None, "it")
    model.config.rope_parameters = {"full_attention": {"rope_type": "default"}}
    with pytest.raises(BadTensor, match="600 tokens are more than the 512 positions of it"):
        check_positions(model.config, 600, None, "it")
