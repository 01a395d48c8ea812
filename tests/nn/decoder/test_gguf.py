import contextlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput, BadModel
from lissome.kernels.decoder.native import Decoder, Pool
from lissome.kernels.decoder.packed import Codes, pack, unpack
from lissome.kernels.library import library
from lissome.nn.decoder.gguf import read_gguf
from lissome.nn.decoder.gguf_write import write_gguf
from lissome.nn.decoder.modules import from_llama
from lissome.nn.decoder.tokenizer import tokenizer_of
from lissome.nn.decoder.weights import from_gguf

from .small import as_gguf, coded, llama


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    model = llama()
    return model, as_gguf(model, tmp_path_factory.mktemp("gguf") / "small.gguf")


def same(a, b) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("codes", "scale", "offset"))


def test_codes_come_back_as_they_were_written(tmp_path):
    four, eight, floats = coded(torch.randn(5, 96)), coded(torch.randn(7, 64), 8), torch.randn(3, 4)
    zero = Codes(four.codes, four.scale, -8 * four.scale)  # Q4_0
    values = {"a.text": "höhe", "a.number": 7, "a.below": -3, "a.float": 0.5, "a.yes": True, "a.list": [1, -2, 3], "a.texts": ["x", ""]}
    write_gguf(tmp_path / "f.gguf", values, {"four": four, "zero": zero, "eight": eight, "floats": floats})
    file = read_gguf(tmp_path / "f.gguf")
    assert dict(file.metadata) == values
    assert [entry.kind for entry in file.entries.values()] == ["Q4_1", "Q4_0", "Q8_0", "F32"]
    assert same(file.tensor("four"), four) and same(file.tensor("zero"), zero) and same(file.tensor("eight"), eight)
    assert np.array_equal(file.tensor("floats"), floats)


@pytest.mark.skipif(library().handle is None, reason="no native kernels")
def test_a_file_gives_the_logits_of_the_model_it_was_made_of(whole):
    model, path = whole
    tokens = torch.randint(0, 262, (1, 80), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens).logits[0]
    decoder = Decoder(from_gguf(read_gguf(path)), 1, 100, Pool(1), half=False, inputs=32)
    found = decoder.step(tokens[0], torch.zeros(80), torch.arange(80), torch.arange(80))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_weights_are_the_files_own_not_rounded_again(whole):
    model, path = whole
    weights = from_gguf(read_gguf(path))
    ours = from_llama(model, lambda _, weight: weight)
    for layer, plain in zip(weights.layers, ours.layers, strict=True):
        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            assert np.array_equal(unpack(layer.matrices[name]).dense(), unpack(plain.matrices[name]))
    assert weights.head is weights.embedding


def test_the_tokenizer_inside(whole):
    tokenizer = tokenizer_of(read_gguf(whole[1]))
    found = tokenizer.encode("<|im_start|>the man, 42\u00e9<|im_end|>")
    assert found.tokens[:2] == ["<|im_start|>", "the"] and found.tokens[-1] == "<|im_end|>"
    assert tokenizer.decode(tokenizer.encode("the man, 42\u00e9 \n").ids) == "the man, 42\u00e9 \n"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_hostile_file_is_an_error_and_nothing_else(whole, data):
    """Bytes are cut off or changed, most of them where the lengths stand; what opens is read to its end."""
    raw = bytearray(whole[1].read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    for _ in range(data.draw(st.integers(1, 3))):
        if len(raw) < 16:
            break
        at = data.draw(st.integers(0, min(len(raw) - 8, 2000)))
        raw[at : at + 8] = data.draw(
            st.sampled_from([struct.pack("<Q", n) for n in (0, 1, 1 << 31, 1 << 40, (1 << 64) - 1)]) | st.binary(min_size=8, max_size=8)
        )
    path = whole[1].parent / "hostile.gguf"
    path.write_bytes(raw)
    with contextlib.suppress(BadModel, BadInput):
        file = read_gguf(path)
        from_gguf(file)
        tokenizer_of(file)


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: b"GGML" + raw[4:], "does not begin with GGUF"),
        (lambda raw: raw[:10], "has 10 bytes and is no GGUF file"),
        (lambda raw: raw[:4] + struct.pack("<I", 9) + raw[8:], "GGUF version 9"),
        (lambda raw: raw[:8] + struct.pack("<Q", 1 << 60) + raw[16:], "it claims 1,152,921,504,606,846,976 tensors"),
        (lambda raw: raw[:16] + struct.pack("<Q", 1 << 60) + raw[24:], "entries of metadata"),
        (cut, "ends at byte [0-9,]+, and the file at"),
        (lambda raw: raw[:40], "in the middle of its header|more than its 40 bytes"),
    ],
)
def test_what_is_wrong_is_said(whole, change, message):
    path = whole[1].parent / "wrong.gguf"
    path.write_bytes(change(whole[1].read_bytes()))
    with pytest.raises(BadModel, match=message):
        read_gguf(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "mamba"}, 'its architecture is "mamba"'),
        ({"llama.block_count": 3}, 'there is no tensor "blk.2'),
        ({"llama.block_count": 0}, 'its metadata has 0 for "llama.block_count"'),
        ({"llama.embedding_length": "x"}, 'its metadata has x for "llama.embedding_length"'),
    ],
)
def test_a_model_that_is_not_offered_or_not_whole_is_named(tmp_path, metadata, message):
    with pytest.raises(BadModel, match=message):
        from_gguf(read_gguf(as_gguf(llama(), tmp_path / "m.gguf", **metadata)))


def test_another_tokenizer_is_named(tmp_path):
    with pytest.raises(BadModel, match='its tokenizer is "llama", "smollm"'):
        tokenizer_of(read_gguf(as_gguf(llama(), tmp_path / "m.gguf", **{"tokenizer.ggml.model": "llama"})))


def test_an_unknown_type_is_named(tmp_path, whole):
    raw = bytearray(whole[1].read_bytes())
    at = raw.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8
    raw[at : at + 4] = struct.pack("<I", 12)
    (tmp_path / "k.gguf").write_bytes(raw)
    with pytest.raises(BadModel, match=r'the tensor "output_norm\.weight" is of type 12'):
        read_gguf(tmp_path / "k.gguf")


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({}, {"a": Codes(torch.zeros(2, 64, dtype=torch.uint8), torch.ones(2, 1).half(), torch.ones(2, 1).half())}, '"a" is in groups of 64'),
        ({}, {"a": Codes(torch.zeros(2, 32, dtype=torch.int8), torch.ones(2, 1).half(), torch.ones(2, 1).half())}, "codes of 8 bits with an offset"),
        ({"k": {}}, {}, '"k" is {}'),
    ],
)
def test_what_the_format_has_no_place_for(tmp_path, metadata, tensors, message):
    with pytest.raises(BadInput, match=message):
        write_gguf(tmp_path / "x.gguf", metadata, tensors)


def test_other_shapes_of_models_are_refused():
    with pytest.raises(BadModel, match="a llama with gelu is not offered"):
        from_llama(llama(hidden_act="gelu"))
    with pytest.raises(BadModel, match='positions scaled as "dynamic" are not offered'):
        from_llama(llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}))


def test_packing_takes_what_the_file_gives(whole):
    codes = read_gguf(whole[1]).tensor("blk.0.ffn_up.weight")
    assert same(unpack(pack(codes)), codes)
