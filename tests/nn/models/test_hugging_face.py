"""transformers' models taken over into parts and given back: logits within 1e-5 (they are of size 1 to 5), and what is not offered is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close

from lissome.core.cache import Cache
from lissome.core.errors import BadModel
from lissome.data.sources import source
from lissome.nn.call import accepted
from lissome.nn.load import as_model, load_model, save_model
from lissome.nn.models.as_transformers import to_transformers
from lissome.nn.models.hugging_face import from_transformers
from lissome.nn.models.swap import swap
from tests.nn.models.small import VOCABULARY, model, padded, shaken

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
MAJOR = int(transformers.__version__.split(".")[0])
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 3}
TEXT = {**SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
LLAMA = {**TEXT, "num_key_value_heads": 2, "pad_token_id": 0}
VIT = {**SIZES, "image_size": 16, "patch_size": 4, "num_channels": 1}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
SCALED = {"rope_parameters": {**LLAMA3, "rope_theta": 5000.0}} if MAJOR >= 5 else {"rope_scaling": LLAMA3, "rope_theta": 5000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0}
SLOWED = {"rope_parameters": {**LINEAR, "rope_theta": 1e4}} if MAJOR >= 5 else {"rope_scaling": LINEAR}

CASES = [
    ("LlamaForCausalLM", LLAMA),
    ("LlamaForCausalLM", {**LLAMA, **SCALED, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    ("LlamaForCausalLM", {**LLAMA, **SLOWED, "hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 4}),
    ("LlamaModel", LLAMA),
    ("LlamaForSequenceClassification", LLAMA),
    ("LlamaForTokenClassification", LLAMA),
    ("BertModel", TEXT),
    ("BertForMaskedLM", TEXT),
    ("BertForMaskedLM", {**TEXT, "tie_word_embeddings": False, "hidden_act": "relu"}),
    ("BertForSequenceClassification", TEXT),
    ("BertForSequenceClassification", {**TEXT, "num_labels": 1}),
    ("BertForTokenClassification", {**TEXT, "hidden_act": "gelu_new", "type_vocab_size": 3}),
    ("ViTModel", VIT),
    ("ViTForImageClassification", VIT),
    ("ViTForImageClassification", {**VIT, "qkv_bias": False, "num_channels": 3, "layer_norm_eps": 1e-6}),
]


def theirs(name: str, options: dict) -> nn.Module:
    known = getattr(transformers, name)
    return shaken(known(known.config_class(**options)))


def outputs(module: nn.Module, channels: int = 0) -> torch.Tensor:
    """What a text or image model says, without padding."""
    if channels:
        given = {"pixel_values": torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))}
    else:
        tokens, mask = padded()
        given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": tokens % 2}
        given = {key: given[key] for key in accepted(module, tuple(given))}
    with torch.no_grad():
        found = module(**given)
    if not isinstance(found, torch.Tensor):
        found = found.logits if hasattr(found, "logits") else found.last_hidden_state
    return found[mask.bool()] if not channels and found.ndim == 3 else found


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{at}" for at, (name, _) in enumerate(CASES)])
def test_logits_are_those_of_transformers_there_and_back(name, options, tmp_path):
    original = theirs(name, options)
    channels = options.get("num_channels", 0)
    expected = outputs(original, channels)
    ours = from_transformers(original)
    assert expected.abs().max() > 0.3
    assert_close(outputs(ours.module, channels), expected, **TOLERANCE)
    assert_close(outputs(to_transformers(ours.module, 0 if "Llama" in name else None), channels), expected, **TOLERANCE)
    save_model(ours, tmp_path)
    assert_close(outputs(load_model(str(tmp_path)).module, channels), outputs(ours.module, channels), atol=0, rtol=0)


def test_a_folder_is_taken_over_and_keeps_its_tokenizer(tmp_path):
    original = theirs("LlamaForCausalLM", LLAMA)
    original.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    found = from_transformers(tmp_path)
    assert_close(outputs(found.module), outputs(original), **TOLERANCE)
    assert found.directory == tmp_path
    assert from_transformers(found) is found


def test_sparse_patterns_go_along():
    ours = swap(model(), "attention", {"kind": "sparse", "pattern": "window(4)"}, layers=[1]).model
    back = to_transformers(ours)
    assert back.config.lissome_attention == [None, "window(4)", None]
    assert_close(outputs(back), outputs(ours), atol=1e-4, rtol=1e-4)
    assert (outputs(back) - outputs(to_transformers(model()))).abs().max() > 0.01


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("GPT2LMHeadModel", {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 9}, 'the architecture "gpt2" is not offered in parts'),
        ("LlamaForCausalLM", {**LLAMA, "hidden_act": "mish"}, 'the activation "mish" is not offered in parts'),
        ("BertForQuestionAnswering", TEXT, "the class BertForQuestionAnswering is not offered in parts"),
        ("BertLMHeadModel", {**TEXT, "is_decoder": True}, "BERT as a decoder is not offered in parts"),
        ("ViTForMaskedImageModeling", {**VIT, "num_channels": 3}, "the class ViTForMaskedImageModeling is not offered in parts"),
    ],
)
def test_what_is_not_offered_is_named(name, options, says):
    known = getattr(transformers, name)
    with pytest.raises(BadModel) as caught:
        from_transformers(known(known.config_class(**options)))
    assert says in str(caught.value)


def test_a_rotary_scaling_that_is_not_offered_is_named():
    original = theirs("LlamaForCausalLM", LLAMA)
    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
    if MAJOR >= 5:
        original.config.rope_parameters = yarn
    else:
        original.config.rope_scaling = yarn
    with pytest.raises(BadModel, match='the rotary scaling "yarn" is not offered in parts\n  Expected: default, linear, llama3'):
        from_transformers(original)


def test_other_modules_are_named():
    with pytest.raises(BadModel, match='the architecture "Linear" is not offered in parts'):
        from_transformers(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("role", "part", "name", "says"),
    [
        ("ffn", "relu2", None, "no architecture of transformers computes this: its ffn of block 0 is relu2"),
        ("positions", "none", None, "its positions is none()"),
        ("head", {"kind": "classification", "classes": 2}, "topic", "it has 2 heads, and a transformers model has one"),
        ("head", {"kind": "classification", "classes": 2, "pool": "mean"}, "lm", "its head is classification(classes=2, pool='mean'"),
    ],
)
def test_what_transformers_does_not_compute(role, part, name, says):
    with pytest.raises(BadModel) as caught:
        to_transformers(swap(model(), role, part, name=name).model)
    assert says in str(caught.value)


def test_the_native_decoder_takes_what_is_given_back():
    from lissome.nn.decoder.modules import from_llama

    weights = from_llama(to_transformers(model()))
    assert len(weights.layers) == 3 and (weights.heads, weights.kv_heads) == (4, 2)


def cached(name: str) -> Path:
    """The folder of a source that was fetched before; skips otherwise."""
    known = source(name)
    folder = Cache().path("sources", f"{known.name}-{known.version}-{known.sha256[:12]}") / known.content
    if not folder.is_dir():
        pytest.skip(f"{name} is not in the cache; `lissome.data.sources.fetch({name!r})` brings it")
    return folder


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["minilm", "smollm2-135m"])
def test_real_models(name):
    """Within 1e-4 of logits of up to 30; the same operations in the same order have given equal bits here."""
    folder = cached(name)
    files = sorted(folder.glob("*.gguf"))
    original = load_model(str(files[0] if files else folder))
    ours = from_transformers(original)
    tokens = torch.randint(1000, 20000, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = original.module(tokens)
    expected = expected.logits if hasattr(expected, "logits") else expected.last_hidden_state
    assert_close(ours.module(tokens), expected, atol=1e-4, rtol=1e-4)
    assert as_model(ours.module).fingerprint == ours.fingerprint
