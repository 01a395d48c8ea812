from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lissome.cli.main import run
from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QuantizeConfig
from lissome.compress.quantize.decoder import RoundConfig, read_block, round_decoder, scale_channels, through
from lissome.compress.quantize.feedback import Inputs
from lissome.compress.quantize.grids import decoder_rule
from lissome.compress.quantize.packing import from_quantized, pack_to
from lissome.compress.quantize.simulate import simulate
from lissome.core.errors import BadInput, BadModel
from lissome.kernels.decoder.packed import Codes, unpack
from lissome.kernels.decoder.reference import Reference, dense
from lissome.nn.decoder.checkpoint import open_checkpoint
from lissome.nn.decoder.folder import load_decoder
from lissome.nn.decoder.gguf import read_gguf
from lissome.nn.decoder.gguf_write import write_gguf
from lissome.nn.decoder.weights import LLAMA_NAMES, from_gguf, rotations
from tests.nn.decoder.small import as_gguf, llama

torch.set_num_threads(1)
TEXT = "the man and the thread, an anthem of the then and 1 than 2\n" * 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small model as a Hugging Face folder with a tokenizer, in bfloat16, and some text."""
    root = tmp_path_factory.mktemp("llama")
    from transformers import LlamaForCausalLM

    folder = folder_of(llama(intermediate_size=128, vocab_size=300), root / "hf")
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), folder, text_in(root)


def text_in(root: Path) -> Path:
    path = root / "text.txt"
    path.write_text(TEXT)
    return path


def folder_of(model, folder: Path, dtype=torch.bfloat16) -> Path:
    from lissome.nn.decoder.tokenizer import tokenizer_of

    model.to(dtype).save_pretrained(folder)
    tokenizer_of(read_gguf(as_gguf(llama(), folder / "tokenizer.gguf"))).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer.gguf").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0]['content'] }}"}))
    return folder


def windows(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 262, (4, 32), generator=torch.Generator().manual_seed(seed))


def logits_of(weights, tokens) -> torch.Tensor:
    n = len(tokens)
    return torch.from_numpy(Reference(weights, 1, n, half=False).step(tokens, np.zeros(n), np.arange(n), np.arange(n)))


@pytest.mark.parametrize("method", ["rtn", "absolute", "mse", "awq", "gptq", "awq+gptq"])
@pytest.mark.parametrize(("group", "symmetric"), [(32, False), (64, True)])
def test_every_method_gives_a_decoder_near_the_float_model(made, method, group, symmetric):
    model, folder, _ = made
    found = round_decoder(open_checkpoint(folder), RoundConfig(method=method, group=group, symmetric=symmetric), windows())
    matrix = unpack(found.layers[1].matrices["down"])
    assert isinstance(matrix, Codes) and matrix.group == group and matrix.bits == 4
    if symmetric:
        assert np.array_equal(matrix.offset, -8 * matrix.scale)
    tokens = windows(7)[0]
    with torch.no_grad():
        expected = model(tokens[None]).logits[0]
    away = torch.linalg.vector_norm(logits_of(found, tokens) - expected) / torch.linalg.vector_norm(expected)
    assert float(away) < 0.35  # random weights forgive little


def test_floats_run_through_the_blocks_as_in_transformers(made):
    model, folder, _ = made
    checkpoint, tokens = open_checkpoint(folder), windows()
    shape = checkpoint.shape
    cosine, sine = (torch.from_numpy(one[:32]) for one in rotations(shape.dim, shape.positions, shape.base))
    states = torch.from_numpy(checkpoint.floats("embedding"))[tokens]
    for at in range(shape.layers):
        states = through(read_block(checkpoint, at), states, shape, (cosine, sine))
    states = torch.nn.functional.rms_norm(states, states.shape[2:], torch.from_numpy(checkpoint.floats("norm")), shape.epsilon)
    with torch.no_grad():
        np.testing.assert_allclose(states, model.model(tokens).last_hidden_state, rtol=1e-3, atol=1e-3)


def test_a_scaled_block_computes_what_the_unscaled_did(made):
    checkpoint = open_checkpoint(made[1])
    shape, block = checkpoint.shape, read_block(checkpoint, 0)
    rotation = tuple(torch.from_numpy(one[:32]) for one in rotations(shape.dim, shape.positions, shape.base))
    states = torch.from_numpy(checkpoint.floats("embedding"))[windows()]
    seen: dict[int, Inputs] = {}

    def visit(stage, x):
        seen[stage] = Inputs(x.shape[-1])
        seen[stage].add(x * torch.linspace(0.1, 10, x.shape[-1]), "")  # so that channels differ in size

    before = through(block, states, shape, rotation, visit)
    kept = {name: one.clone() for name, one in block.matrices.items()}
    scale_channels(block, seen, shape, 32, decoder_rule(4, False))
    assert any(not np.array_equal(kept[name], block.matrices[name]) for name in kept)
    np.testing.assert_allclose(through(block, states, shape, rotation), before, rtol=1e-4, atol=1e-4)


def test_feedback_beats_rounding_to_the_nearest_on_what_it_was_calibrated_on(made):
    model, folder, _ = made
    checkpoint = open_checkpoint(folder)
    plain = logits_of(round_decoder(checkpoint, RoundConfig(method="mse", embedding=32)), windows()[0])
    with torch.no_grad():
        true = model(windows()[0][None]).logits[0]
    fed = logits_of(round_decoder(checkpoint, RoundConfig(method="gptq", embedding=32), windows()), windows()[0])
    assert float((fed - true).square().mean()) < float((plain - true).square().mean())


def test_a_folder_and_a_gguf_file_hold_the_same_weights(made, tmp_path, capsys):
    _, folder, text = made
    words = ["pack", str(folder), "--out", str(tmp_path / "out"), "--method", "gptq", "--text", str(text), "--gguf", str(tmp_path / "m.gguf"), "--json"]
    assert run([*words, "--tokens", "256"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["method"] == "gptq" and told["mb"] < 0.4 * told["mb_float"]
    weights, description = load_decoder(tmp_path / "out")
    assert description.about.chat_template == "{{ messages[0]['content'] }}"
    file = read_gguf(tmp_path / "m.gguf")
    again = from_gguf(file)
    for layer, other in zip(weights.layers, again.layers, strict=True):
        assert all(np.array_equal(layer.matrices[name].data, other.matrices[name].data) for name in layer.matrices)
    assert np.array_equal(weights.embedding.data, again.embedding.data) and np.allclose(weights.cosine, again.cosine)
    assert {entry.kind for entry in file.entries.values()} == {"Q4_1", "Q8_0", "F32"}
    assert run(["generate", str(tmp_path / "m.gguf"), "--prompt", "the man", "--max-tokens", "3"]) == 0
    first = capsys.readouterr().out
    assert run(["generate", str(tmp_path / "out"), "--prompt", "the man", "--max-tokens", "3"]) == 0
    assert capsys.readouterr().out == first


def test_codes_of_a_file_are_kept_and_floats_of_a_file_are_rounded(tmp_path):
    model = llama()
    coded = as_gguf(model, tmp_path / "coded.gguf")
    found = pack_to(tmp_path / "kept", str(coded))
    assert found.method is None
    assert np.array_equal(load_decoder(tmp_path / "kept")[0].layers[0].matrices["q"].data, from_gguf(read_gguf(coded)).layers[0].matrices["q"].data)
    with pytest.raises(BadModel, match=r'"layers\.0\.q" is in codes of 4 bits already'):
        pack_to(tmp_path / "again", str(coded), RoundConfig())
    file = read_gguf(coded)
    floats = {name: one.dense() if isinstance(one := file.tensor(name), Codes) else one for name in file.entries}
    write_gguf(tmp_path / "floats.gguf", file.metadata, floats)
    pack_to(tmp_path / "rounded", str(tmp_path / "floats.gguf"), RoundConfig(method="rtn"))
    again = load_decoder(tmp_path / "rounded")[0]  # the floats lie on the grid of the file that they came from
    kept = load_decoder(tmp_path / "kept")[0]
    for layer, other in zip(kept.layers, again.layers, strict=True):
        assert all(np.array_equal(dense(layer.matrices[name]), dense(other.matrices[name])) for name in layer.matrices)


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_was_trained_with_its_rounding_is_packed_as_it_is(made, symmetric):
    model, _, _ = made
    config = QuantizeConfig(precision="w4a16", group=32, symmetric=symmetric, smallest=1)
    quantized = quantize(model, config)
    weights = from_quantized(quantized)
    twin = simulate(quantized.model.module, quantized.quantization, quantized.scales)
    for at, layer in enumerate(weights.layers):
        for name, inner in LLAMA_NAMES.items():
            simulated = twin.get_submodule(f"model.layers.{at}.{inner}").quantized_weight().detach()
            np.testing.assert_allclose(dense(layer.matrices[name]), simulated, rtol=1e-3, atol=1e-3 * float(simulated.abs().max()))
    assert weights.embedding.bits == 8


def broken(folder: Path, into: Path, **changes) -> Path:
    """The folder with something in its configuration or weights changed."""
    into.mkdir()
    for file in folder.iterdir():
        (into / file.name).write_bytes(file.read_bytes())
    config = json.loads((into / "config.json").read_text())
    weights = load_file(into / "model.safetensors")
    for name, value in changes.items():
        if name == "nan":
            weights[value][0, 0] = float("nan")
        elif name == "without":
            del weights[value]
        else:
            config[name] = value
    (into / "config.json").write_text(json.dumps(config))
    save_file(weights, into / "model.safetensors")
    return into


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nan": "model.layers.1.mlp.up_proj.weight"}, r'"model\.layers\.1\.mlp\.up_proj\.weight" holds NaN'),
        ({"without": "model.layers.0.self_attn.q_proj.weight"}, 'there is no tensor "model.layers.0.self_attn.q_proj.weight"'),
        ({"model_type": "mamba"}, "a mamba with silu is not offered"),
        ({"rope_parameters": {"rope_type": "yarn"}}, 'positions scaled as "yarn" are not offered'),
        ({"num_hidden_layers": 0}, 'config.json has 0 for "num_hidden_layers"'),
    ],
)
def test_a_model_that_cannot_be_packed_is_named(made, tmp_path, changes, message):
    with pytest.raises(BadModel, match=message):
        pack_to(tmp_path / "out", str(broken(made[1], tmp_path / "in", **changes)))


def test_a_tokenizer_that_is_broken_is_named(made, tmp_path):
    folder = broken(made[1], tmp_path / "in")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BadModel, match=r"its tokenizer cannot be read[\s\S]*save the model's fast tokenizer again"):
        open_checkpoint(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadModel, match="it has no tokenizer"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "best"], "--method"),
        (["--method", "gptq"], "gptq needs calibration text, and there is none"),
        (["--method", "gptq", "--text", "EMPTY"], "the calibration text is empty"),
        (["--method", "awq", "--text", "nowhere.txt"], "does not exist"),
        (["--group", "128"], "groups of 128 do not divide the 64 columns of q, k, v, gate and up"),
        (["--group", "64", "--gguf", "x.gguf"], "GGUF has no place for groups of 64"),
    ],
)
def test_what_is_wrong_is_said(made, tmp_path, capsys, words, says):
    (tmp_path / "empty.txt").write_text(" \n")
    words = [str(tmp_path / "empty.txt") if word == "EMPTY" else word for word in words]
    assert run(["pack", str(made[1]), "--out", str(tmp_path / "out"), *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_tokens_and_activations_that_do_not_fit(made):
    checkpoint = open_checkpoint(made[1])
    with pytest.raises(BadInput, match="the calibration text has token 5,000, and the model 300"):
        round_decoder(checkpoint, RoundConfig(method="gptq"), torch.full((1, 4), 5000))


def test_a_tasks_calibration_split_serves(made, monkeypatch):
    from types import SimpleNamespace

    from lissome.compress.quantize import packing

    rows = [torch.arange(16).numpy() + at for at in range(5)]
    tasks = {"lm": SimpleNamespace(kind="language-modelling", splits={"calibration": SimpleNamespace(inputs=[*rows, rows[0][:3]])})}
    tasks["other"] = SimpleNamespace(kind="tabular", splits={})
    monkeypatch.setattr(packing, "load_task", lambda name, _: tasks[name])
    config = RoundConfig(method="gptq", tokens=64, length=16)
    found = packing.calibration_windows(open_checkpoint(made[1]), config, None, "lm")
    assert found.tolist() == [row.tolist() for row in rows[:4]]
    with pytest.raises(BadInput, match='the task "other" is tabular'):
        packing.calibration_windows(open_checkpoint(made[1]), config, None, "other")
