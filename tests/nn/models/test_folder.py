"""Folders of models of parts: what every verb takes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from lissome.compress.prune import PruneConfig, groups, prune
from lissome.core.errors import BadInput, BadModel
from lissome.data.vocabulary import train_tokenizer
from lissome.export.onnx import to_onnx
from lissome.export.program import export_program
from lissome.nn.load import as_model, load_model, save_model
from lissome.nn.models.assembly import assemble
from lissome.nn.models.folder import build_to, swap_to
from lissome.nn.models.presets import bert
from tests.nn.models.small import LENGTH, VOCABULARY, decoder, ids, model
from tests.nn.tiny import bert_folder, tensors, texts

TOPIC = {"topic": {"kind": "classification", "classes": 2}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(decoder().model_dump(mode="json")))
    return path


@torch.no_grad()
def test_a_config_becomes_a_folder(file, tmp_path):
    build_to(tmp_path / "out", str(file))
    assert torch.equal(load_model(str(tmp_path / "out")).module(ids()), model()(ids()))
    file.with_suffix(".json").write_text(decoder().model_dump_json())
    assert build_to(tmp_path / "second", str(file.with_suffix(".json"))).fingerprint == load_model(str(tmp_path / "out")).fingerprint


@torch.no_grad()
def test_a_hugging_face_folder_is_taken_over_and_swapped(tmp_path):
    folder = bert_folder(tmp_path / "hf")
    taken = build_to(tmp_path / "parts", str(folder))
    original = load_model(str(folder)).module
    tokens = ids(2, 20)
    assert (taken.module(tokens) - original(tokens).logits).abs().max() < 1e-5
    changes = [("attention", {"kind": "sparse", "pattern": "everything()"}, None), ("ffn", "relu2", None), ("head", "token", "tags")]
    with pytest.raises(BadInput, match='the head "token" needs the option "classes"'):
        swap_to(tmp_path / "swapped", str(folder), changes)
    changes[-1] = ("head", {"kind": "token", "classes": 2}, "tags")
    found, new, left = swap_to(tmp_path / "swapped", str(folder), changes[1:], layers=[0])
    assert new == ("heads.tags.linear.weight", "heads.tags.linear.bias") and left == ()
    loaded = load_model(str(tmp_path / "swapped"))
    assert loaded.fingerprint == found.fingerprint
    assert [block.ffn.kind for block in loaded.module.config.layers()] == ["relu2", "dense"]


def test_a_tokenizer_goes_along(file, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(BadInput, match="there is no tokenizer here"):
        build_to(tmp_path / "out", str(file), tmp_path / "tokenizer")
    train_tokenizer(["a text"], 270).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    with pytest.raises(BadModel, match=f"the tokenizer has 2.. tokens, the model {VOCABULARY}"):
        build_to(tmp_path / "out", str(file), tmp_path / "tokenizer")
    file.write_text(yaml.safe_dump(decoder(embedding={"kind": "tokens", "vocabulary": 300}).model_dump(mode="json")))
    build_to(tmp_path / "out", str(file), tmp_path / "tokenizer")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_what_cannot_be_built(file, tmp_path):
    with pytest.raises(BadInput, match=r'there is no preset "mobil". Did you mean "mobile"'):
        build_to(tmp_path / "out", "mobil")
    with pytest.raises(BadInput, match="there is something here already"):
        build_to(tmp_path, str(file))
    with pytest.raises(BadInput, match="there is nothing to swap"):
        swap_to(tmp_path / "out", str(file), [])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_exporters_take_it_with_any_length(tmp_path, kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    config = decoder(heads=TOPIC) if kind == "decoder" else bert(VOCABULARY + 1, 32, 2, 4, 48, LENGTH, answers=TOPIC)
    made = assemble(config)
    program = export_program(made, texts(2, 16), variable_length=True)
    path = to_onnx(program, ("input_ids", "attention_mask"), tmp_path)
    other = texts(3, 29, seed=1)
    with torch.no_grad():
        expected = made(**tensors(other)).numpy()
    found = onnxruntime.InferenceSession(str(path)).run(None, other)[0]
    assert np.abs(found - expected).max() < 1e-5


def test_a_sparse_model_says_that_it_cannot_be_exported():
    attention = {"kind": "sparse", "pattern": "window(8)", "heads": 4}
    made = assemble(decoder(heads=TOPIC, blocks=[{"attention": attention, "ffn": {"kind": "gated", "inner": 8}}]))
    with pytest.raises(BadModel, match="sparse attention runs in torch alone"):
        export_program(made, texts(2, 16), variable_length=True)


@pytest.mark.slow
def test_pruning_takes_it_and_the_result_loads(tmp_path):
    made = as_model(assemble(bert(VOCABULARY + 1, 32, 2, 4, 48, LENGTH, answers=TOPIC)))
    batch = tensors(texts(4, 12))
    found = groups(made, batch)
    assert {group.kind for group in found.groups} >= {"heads", "neurons"}
    small = prune(made, PruneConfig(ratio=0.5, round_to=1, importance="l2"), batch)
    save_model(small, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path)).module(**batch), small.module(**batch))
    assert sum(p.numel() for p in small.module.parameters()) < 0.8 * sum(p.numel() for p in made.module.parameters())
