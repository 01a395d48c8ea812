import json

import numpy as np
import pytest
import torch

from lissome.compress.experts import quantize_experts
from lissome.compress.quantize.decoder import RoundConfig
from lissome.compress.quantize.packing import pack_to
from lissome.core.errors import BadInput, BadModel
from lissome.core.model import Model
from lissome.kernels.decoder.native import Decoder, Pool
from lissome.kernels.decoder.packed import dense, unpack
from lissome.kernels.decoder.reference import Reference
from lissome.kernels.library import library
from lissome.nn.decoder.folder import load_decoder
from lissome.nn.decoder.modules import from_module, is_modular
from lissome.nn.ffn.plan import ActivationPlan, use
from lissome.nn.load import as_model, save_model
from lissome.nn.models.assembly import assemble
from lissome.nn.models.config import model_config
from lissome.nn.models.presets import llama as llama_config
from lissome.nn.moe.config import MoEConfig
from lissome.nn.moe.in_models import put_experts
from lissome.nn.moe.layer import MoE
from tests.nn.decoder.small import WORDS, llama
from tests.nn.models.small import shaken

TOKENS = torch.randint(0, 90, (1, 24), generator=torch.Generator().manual_seed(0))
EXPERTS = {"kind": "experts", "experts": 4, "active": 2, "neurons": 32}


def parts(ffn=None, head=None, **changes):
    """A small model of parts with weights by lot, and such a feed-forward part in its second block."""
    values = llama_config(90, 64, 2, 4, 2, 96, 64).model_dump(mode="json")
    block = {**values["blocks"][0], "repeat": 1}
    values["blocks"] = [block, {**block, "ffn": ffn or block["ffn"]}]
    if head:
        values["heads"] = {"lm": {**values["heads"]["lm"], **head}}
    return shaken(assemble(model_config({**values, **changes})))


def step(decoder):
    n = TOKENS.shape[1]
    return decoder.step(TOKENS[0].numpy(), np.zeros(n), np.arange(n), np.arange(n))


def same_logits(module, weights):
    with torch.no_grad():
        found = module(TOKENS)
        expected = getattr(found, "logits", found)[0].numpy()
    spread = np.abs(expected).max()
    np.testing.assert_allclose(step(Reference(weights, 1, 32, half=False)), expected, atol=1e-5 * spread)
    if library().handle is not None:
        np.testing.assert_allclose(step(Decoder(weights, 1, 32, Pool(1), half=False, inputs=32)), expected, atol=1e-5 * spread)


@pytest.mark.parametrize(
    "ffn",
    [
        {"kind": "gated", "inner": 96, "activation": "relu"},
        {"kind": "dense", "inner": 96, "activation": "silu", "bias": False},
        {"kind": "relu2", "inner": 96},
        {"kind": "thresholded", "inner": 96, "activation": "silu", "threshold": 0.05},
        {"kind": "thresholded", "inner": 96, "activation": "relu2", "threshold": 0.02, "on": "product"},
        EXPERTS,
        {**EXPERTS, "shared": 32, "scores": "sigmoid", "scale": 1.5, "offset": True},
        {**EXPERTS, "active": 4, "weights": "ones", "activation": "relu"},
        {**EXPERTS, "weights": "scores"},
    ],
)
def test_parts_say_what_they_said(ffn):
    module = parts(ffn)
    for layer in module.modules():
        if isinstance(layer, MoE):
            layer.router.bias.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    same_logits(module, from_module(module))


@pytest.mark.parametrize(
    "changes",
    [
        {"head": {"tied": False}},
        {"embedding": {"kind": "tokens", "vocabulary": 60, "added": 30}},
        {"embedding": {"kind": "tokens", "vocabulary": 60, "added": 30}, "head": {"tied": False}},
        {"positions": {"kind": "rotary", "base": 500.0, "scaling": "llama3", "factor": 4.0, "original": 16}},
    ],
)
def test_heads_added_words_and_scaled_positions(changes):
    module = parts(**changes)
    same_logits(module, from_module(module))


def with_experts(**changes):
    model = shaken(llama(2))
    config = MoEConfig(experts=4, active=2, neurons=32, **changes)
    return put_experts(model, {"model.layers.1.mlp": shaken(MoE(64, config), 2)})


def test_experts_in_transformers_models():
    model = with_experts(shared=32)
    same_logits(model, from_module(model))


def test_experts_in_codes_keep_them():
    model = quantize_experts(with_experts())
    weights, experts = from_module(model), model.model.layers[1].mlp.experts
    own = unpack(experts.matrix("up", 3))
    for begin, name in ((0, "gate"), (32, "up")):
        found = unpack(weights.layers[1].matrices[f"experts.3.{name}"])
        assert all(np.array_equal(getattr(found, one), getattr(own, one)[begin : begin + 32]) for one in ("codes", "scale", "offset"))
    same_logits(model, weights)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ffn": {"kind": "dense", "inner": 96}}, r"layers\.1.*does not compute dense\(inner=96, activation='gelu', bias=True\)"),
        ({"ffn": {**EXPERTS, "gated": False}}, "experts with silu, without a gate"),
        ({"positions": "learned"}, r"positions.*does not compute learned\(\)"),
        ({"causal": False}, "sees the future"),
        ({"final_norm": None}, "final_norm"),
        ({"heads": {}}, "no head"),
        ({"head": {"bias": True}}, "lm.*bias=True"),
    ],
)
def test_what_the_kernel_does_not_compute_is_named(changes, said):
    with pytest.raises(BadModel, match=f"(?s){said}"):
        from_module(parts(**changes))


def test_attention_that_the_kernel_does_not_compute_is_named():
    values = parts().config.model_dump(mode="json")
    sparse = {"kind": "sparse", "pattern": "window(16)", "heads": 4, "kv_heads": 2}
    values["blocks"] = [{**values["blocks"][0], "attention": sparse, "repeat": 2}]
    with pytest.raises(BadModel, match=r"(?s)block 0, attention.*sparse\(pattern='window\(16\)'.*full, without biases"):
        from_module(assemble(model_config(values)))


def folder_of(module, path):
    """A folder of the model with a tokenizer of words."""
    from tokenizers import Tokenizer, models

    save_model(as_model(module) if not isinstance(module, Model) else module, path)
    vocabulary = {word: at for at, word in enumerate([*WORDS, *(f"w{i}" for i in range(87))])}
    Tokenizer(models.WordLevel(vocabulary, unk_token=WORDS[0])).save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("make", [lambda: parts(EXPERTS), with_experts, lambda: use(shaken(llama(2)), ActivationPlan(activation="relu"))])
def test_what_is_more_than_a_llama_is_packed(make, tmp_path):
    """`lissome pack` of a folder: the matrices are the nearest codes, the router stays in floats."""
    module = make()
    folder = folder_of(module, tmp_path / "model")
    assert is_modular(folder)
    found = pack_to(tmp_path / "packed", str(folder))
    weights, about = load_decoder(tmp_path / "packed")
    exact = from_module(module)
    assert found.method == "mse"
    assert about.about.chat_template is None
    for mine, its in zip(weights.layers, exact.layers, strict=True):
        assert mine.ffn == its.ffn
        for name, matrix in mine.matrices.items():
            assert matrix.bits == (32 if name == "router" else 4)
            error = np.abs(dense(matrix) - dense(its.matrices[name])).max()
            assert error <= (0 if name == "router" else 0.1 * np.abs(dense(its.matrices[name])).max())
    assert weights.embedding.bits == 8


def test_bad_ways_to_pack_parts(tmp_path):
    folder = folder_of(parts(EXPERTS), tmp_path / "model")
    with pytest.raises(BadInput, match=r"(?s)gptq is calibrated block by block.*--method mse"):
        pack_to(tmp_path / "packed", str(folder), RoundConfig(method="gptq"))
    with pytest.raises(BadInput, match="GGUF has plain Llama-shaped decoders alone"):
        pack_to(tmp_path / "packed", str(folder), gguf=tmp_path / "x.gguf")
    with pytest.raises(BadInput, match=r"groups of 128 do not divide the 64 columns of layers\.0\.q"):
        pack_to(tmp_path / "packed", str(folder), RoundConfig(group=128))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadModel, match=r"it has no tokenizer\.json"):
        pack_to(tmp_path / "packed", str(folder))
    assert not (tmp_path / "packed").exists()


def test_a_plain_llama_is_none_of_them(tmp_path):
    assert not is_modular(folder_of(llama(1), tmp_path / "model"))
    (tmp_path / "config.json").write_text("not JSON")
    assert not is_modular(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    assert not is_modular(tmp_path)
