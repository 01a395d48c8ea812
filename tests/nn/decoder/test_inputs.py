import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadModel
from lissome.kernels.decoder.native import Decoder, Pool
from lissome.kernels.decoder.reference import Reference
from lissome.kernels.library import library
from lissome.nn.decoder.folder import DESCRIPTION, About, load_decoder, save_decoder
from lissome.nn.decoder.inputs import ISA, TOGETHER, measured_inputs, rounding_costs, with_inputs
from lissome.nn.decoder.modules import from_llama
from tests.nn.decoder.small import coded, llama

native = pytest.mark.skipif(library().handle is None, reason=f"no native kernels: {library().trouble}")
rounding = pytest.mark.skipif(library().isa != ISA, reason="inputs are not rounded on this processor")
WEIGHTS = from_llama(llama(), lambda _, w: coded(w))
WINDOWS = torch.randint(0, 300, (2, 48), generator=torch.Generator().manual_seed(0))
ROWS = WINDOWS[0], torch.zeros(48), torch.arange(48), torch.arange(48)


def bits_of(weights):
    first = weights.layers[0].matrices
    return {group: weights.head.inputs if group == "head" else first[names[0]].inputs for group, names in TOGETHER.items()}


@pytest.fixture
def folder(tmp_path):
    from tokenizers import Tokenizer, models

    weights = with_inputs(WEIGHTS, {"scores": 16, "down": 8, "head": 32})
    save_decoder(weights, tmp_path, Tokenizer(models.WordLevel({"a": 0}, "a")), About())
    return tmp_path


def test_what_was_measured_is_kept(folder):
    weights, _ = load_decoder(folder)
    assert bits_of(weights) == {"scores": 16, "neurons": None, "v": None, "o": None, "down": 8, "head": 32}
    assert {layer.matrices[name].inputs for layer in weights.layers for name in "qk"} == {16}


def test_a_folder_that_does_not_say_is_read_by_the_rule(folder):
    told = json.loads((folder / DESCRIPTION).read_text())
    for matrix in told["matrices"].values():
        del matrix["inputs"]
    (folder / DESCRIPTION).write_text(json.dumps(told))
    assert set(bits_of(load_decoder(folder)[0]).values()) == {None}


def test_bits_that_are_not_offered(folder):
    told = json.loads((folder / DESCRIPTION).read_text())
    told["matrices"]["layers.0.q"]["inputs"] = 12
    (folder / DESCRIPTION).write_text(json.dumps(told))
    with pytest.raises(BadModel, match="cannot be read"):
        load_decoder(folder)


@native
def test_mixed_is_what_each_matrix_says():
    for bits in (8, 16, 32):
        said = Decoder(with_inputs(WEIGHTS, dict.fromkeys(TOGETHER, bits)), 1, 48, Pool(2)).step(*ROWS)
        assert np.array_equal(said, Decoder(WEIGHTS, 1, 48, Pool(2), inputs=bits).step(*ROWS))
    rule = Decoder(with_inputs(WEIGHTS, dict.fromkeys(TOGETHER, 8) | {"v": 16, "head": 16}), 1, 48, Pool(2)).step(*ROWS)
    assert np.array_equal(rule, Decoder(WEIGHTS, 1, 48, Pool(2)).step(*ROWS))


@native
def test_threads_share_what_is_rounded():
    one, *others = (Decoder(WEIGHTS, 1, 48, Pool(threads)).step(*ROWS) for threads in (1, 2, 3, 7))
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-3)


@native
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_mixture_comes_near_the_reference(data):
    """Of bits of inputs, of bits of weights, and of rows that are many, few, and one."""

    def kept(name, weight):
        bits = data.draw(st.sampled_from([4, 8, 32]), label=name)
        return weight if bits == 32 else coded(weight, bits)

    weights = from_llama(llama(1, data.draw(st.integers(0, 9)), intermediate_size=data.draw(st.sampled_from([32, 96, 160]))), kept)
    drawn = st.sampled_from([8, 16, 32])
    layers = [
        dataclasses.replace(one, matrices={name: dataclasses.replace(matrix, inputs=data.draw(drawn)) for name, matrix in one.matrices.items()})
        for one in weights.layers
    ]
    weights = dataclasses.replace(weights, layers=layers, head=dataclasses.replace(weights.head, inputs=data.draw(drawn)))
    rows = data.draw(st.sampled_from([1, 2, 3, 17, 130]))
    step = torch.arange(rows), torch.zeros(rows), torch.arange(rows), torch.tensor([rows - 1, 0])
    found = Decoder(weights, 1, 130, Pool(data.draw(st.integers(1, 3))), half=False).step(*step)
    expected = Reference(weights, 1, 130, half=False).step(*step)
    assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()


@rounding
def test_what_costs_most_gets_more_bits():
    costs = rounding_costs(WEIGHTS, WINDOWS)
    assert all(cost > 0 for cost in costs.values())
    assert set(bits_of(measured_inputs(WEIGHTS, WINDOWS, most=2 * sum(costs.values()))).values()) == {8}
    assert set(bits_of(measured_inputs(WEIGHTS, WINDOWS, most=0)).values()) == {16}
    some = bits_of(measured_inputs(WEIGHTS, WINDOWS, most=sum(costs.values()) / 2))
    assert set(some.values()) == {8, 16} and sum(costs[name] for name, bits in some.items() if bits == 8) <= sum(costs.values()) / 2


def test_where_nothing_is_rounded_the_rule_holds(monkeypatch):
    monkeypatch.setattr("lissome.nn.decoder.inputs.library", lambda: dataclasses.replace(library(), isa="avx2"))
    assert measured_inputs(WEIGHTS, WINDOWS) is WEIGHTS
