from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from lissome.core.errors import BadInput
from lissome.kernels.decoder.packed import Codes, pack, unpack
from lissome.nn.decoder.checkpoint import gguf_about, gguf_shape
from lissome.nn.decoder.folder import About
from lissome.nn.decoder.gguf import read_gguf
from lissome.nn.decoder.gguf_out import check_groups, neighbours_first, save_gguf, tokenizer_metadata
from lissome.nn.decoder.modules import from_llama
from lissome.nn.decoder.tokenizer import tokenizer_of
from lissome.nn.decoder.weights import from_gguf, halves_first

from .small import as_gguf, coded, llama

LLAMA_PYTHON = os.environ.get("LISSOME_LLAMA_PYTHON", sys.executable)
"""An interpreter that has llama-cpp-python, which may live in an environment of its own."""
TEXT = "the man, 42é and a thread\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return read_gguf(as_gguf(llama(), tmp_path_factory.mktemp("gguf") / "small.gguf"))


def test_a_file_read_and_written_is_the_same(file, tmp_path):
    tokenizer, about = tokenizer_of(file), gguf_about(file)
    save_gguf(tmp_path / "again.gguf", from_gguf(file), gguf_shape(file), tokenizer, about, "small")
    again = read_gguf(tmp_path / "again.gguf")
    assert again.metadata["general.name"] == "small"
    assert {name: (one.kind, one.shape) for name, one in again.entries.items()} == {name: (one.kind, one.shape) for name, one in file.entries.items()}
    for name, entry in file.entries.items():
        first, second = (bytes(one.mapped.bytes[e.start : e.start + e.size]) for one, e in ((file, entry), (again, again.entries[name])))
        assert first == second, name
    assert gguf_shape(again) == gguf_shape(file) and gguf_about(again) == about
    tokens, rows = again.metadata["tokenizer.ggml.tokens"], again.entries["token_embd.weight"].shape[0]
    assert tokenizer.get_vocab_size() < rows == len(tokens) == len(set(tokens)) == len(again.metadata["tokenizer.ggml.token_type"])
    assert tokenizer_of(again).get_vocab() == tokenizer.get_vocab()
    for text in (TEXT, "<|im_start|>x<|im_end|>", "1234"):
        assert tokenizer_of(again).encode(text).ids == tokenizer.encode(text).ids


def test_a_head_of_its_own_and_floats_are_written(file, tmp_path):
    model = llama(tie_word_embeddings=False)
    weights = from_llama(model)
    save_gguf(tmp_path / "f.gguf", weights, gguf_shape(file), tokenizer_of(file), About())
    again = from_gguf(read_gguf(tmp_path / "f.gguf"))
    assert np.array_equal(unpack(again.head), unpack(weights.head))
    for layer, other in zip(again.layers, weights.layers, strict=True):
        assert all(np.array_equal(layer.matrices[name].data, other.matrices[name].data) for name in layer.matrices)


def test_rows_turn_there_and_back():
    weight = torch.randn(32, 64)
    assert np.array_equal(halves_first(neighbours_first(weight, 4), 4), weight)
    codes = coded(weight)
    back = halves_first(neighbours_first(codes, 4), 4)
    assert isinstance(back, Codes) and np.array_equal(back.codes, codes.codes) and np.array_equal(back.scale, codes.scale)


def wide(weight: torch.Tensor) -> Codes:
    """Four bits in groups of 64."""
    return Codes(torch.zeros_like(weight, dtype=torch.uint8), torch.ones(len(weight), weight.shape[1] // 64).half(), torch.ones(len(weight), 1).half())


def test_groups_that_the_format_has_no_place_for(file, tmp_path):
    weights = from_llama(llama(), lambda name, weight: wide(weight) if name.endswith("q_proj") else weight)
    assert pack(wide(torch.ones(16, 64))).group == 64
    with pytest.raises(BadInput, match=r"GGUF has no place for groups of 64\.[\s\S]*Q4_0, Q4_1, Q8_0"):
        save_gguf(tmp_path / "x.gguf", weights, gguf_shape(file), tokenizer_of(file), About())


def byte_level(**changes) -> Tokenizer:
    made = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (Tokenizer(models.WordLevel({"a": 0}, "a")), "a WordLevel tokenizer"),
        (byte_level(pre_tokenizer=pre_tokenizers.Whitespace()), "cuts text by Whitespace"),
        (byte_level(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)), "cuts text by ByteLevel"),
        (byte_level(normalizer=normalizers.Lowercase()), "a BPE tokenizer"),
        (byte_level(model=models.BPE({"a": 0, "b": 2}, [])), "the tokenizer has no token 1, but 2"),
    ],
)
def test_tokenizers_that_cannot_be_written_are_named(tokenizer, message):
    with pytest.raises(BadInput, match=message):
        tokenizer_metadata(tokenizer, About())


@pytest.mark.peer
def test_llama_cpp_says_the_same_tokens(file, tmp_path):
    from lissome.engines.decoding.engine import open_engine
    from lissome.engines.decoding.sampling import Sampling
    from lissome.engines.decoding.text import generate

    if subprocess.run([LLAMA_PYTHON, "-c", "import llama_cpp"], capture_output=True, check=False).returncode:
        pytest.skip("there is no llama-cpp-python; LISSOME_LLAMA_PYTHON names an interpreter that has it")
    path = tmp_path / "ours.gguf"
    save_gguf(path, from_gguf(file), gguf_shape(file), tokenizer_of(file), gguf_about(file))
    program = (
        "import sys, llama_cpp; m = llama_cpp.Llama(sys.argv[1], n_ctx=64, n_threads=1, verbose=False)\n"
        "print(m.tokenize(b'the man', add_bos=False)); print(repr(m('the man', max_tokens=5, temperature=0)['choices'][0]['text']))"
    )
    done = subprocess.run([LLAMA_PYTHON, "-c", program, str(path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    engine = open_engine(path, threads=1)
    assert str(engine.tokenizer.encode("the man").ids) in done.stdout
    assert repr("".join(generate(engine, "the man", Sampling(temperature=0), most=5))) in done.stdout


def test_layers_that_the_format_has_no_place_for():
    from lissome.kernels.decoder.ffn import Ffn
    from tests.kernels.decoder.test_ffn import decoder, layer

    with pytest.raises(BadInput, match="GGUF's llama has no gated feed-forward parts with relu"):
        check_groups(decoder(layer(Ffn("gated", "relu"), 4)))
