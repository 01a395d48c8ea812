import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput
from lissome.kernels.decoder.ffn import Experts, Ffn
from lissome.kernels.decoder.native import Decoder, Layer, Pool, Weights
from lissome.kernels.decoder.packed import Codes, Packed, pack, pack_by_neuron, packed_bytes, unpack
from lissome.kernels.decoder.reference import Reference, feed_forward
from lissome.kernels.library import library
from lissome.nn.decoder.modules import from_llama
from lissome.nn.decoder.weights import rotations
from tests.kernels.decoder.test_packed import codes, shapes
from tests.nn.decoder.small import coded, llama

native = pytest.mark.skipif(library().handle is None, reason=f"no native kernels: {library().trouble}")
HIDDEN = 96


def rounded(weights: torch.Tensor, bits: int) -> torch.Tensor | Codes:
    return weights if bits == 32 else coded(weights, bits)


def layer(ffn: Ffn, bits: int = 32, neurons: int = 160, seed: int = 0) -> Layer:
    """A layer of any kind, with random weights."""
    draw = torch.Generator().manual_seed(seed)

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=draw) / columns**0.5

    matrices = {name: pack(rounded(random(HIDDEN, HIDDEN), bits)) for name in ("q", "k", "v", "o")}
    by_neuron = {"gate-first": ("up", "down"), "product": ("down",), "plain": ("down",)}.get(ffn.kind, ())
    for name in ffn.names():
        last = name.rpartition(".")[2]
        if name == "router":
            matrices[name] = pack(3 * random(ffn.experts.count, HIDDEN))
        elif last == "down" and not by_neuron:
            matrices[name] = pack(rounded(random(HIDDEN, neurons), bits))
        else:
            matrices[name] = (pack_by_neuron if last in by_neuron else pack)(rounded(random(neurons, HIDDEN), bits))
    return Layer(torch.ones(HIDDEN), torch.ones(HIDDEN), matrices, ffn)


def decoder(*layers: Layer) -> Weights:
    draw = torch.Generator().manual_seed(9)
    embedding = pack(torch.randn(50, HIDDEN, generator=draw))
    return Weights(layers, embedding, embedding, torch.ones(HIDDEN), *rotations(16, 64, 10000.0), heads=6, kv_heads=6, dim=16, epsilon=1e-5, scale=0.25)


def experts(draw) -> Experts:
    count = draw(st.sampled_from([1, 4, 19]))
    active = draw(st.integers(1, min(count, 4)))
    bias, offset = (torch.randn(count, generator=torch.Generator().manual_seed(i)) if draw(st.booleans()) else None for i in range(2))
    scores, weights = draw(st.sampled_from(["softmax", "sigmoid"])), draw(st.sampled_from(["scores", "normalised", "ones"]))
    return Experts(count, active, scores, weights, draw(st.sampled_from([1.0, 2.5])), bias, offset, draw(st.booleans()))


@st.composite
def ffns(draw):
    kind, activation = draw(st.sampled_from(["gated", "gate-first", "product", "plain", "experts"])), draw(st.sampled_from(["silu", "relu", "relu2"]))
    if kind == "experts":
        return Ffn(kind, activation, experts=experts(draw))
    return Ffn(kind, activation, 0.0 if kind == "gated" else draw(st.sampled_from([0.0, 0.1, 0.4, 1e9])))


def both(weights: Weights, rows: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
    step = [torch.arange(rows) % 50, torch.zeros(rows), torch.arange(rows), torch.arange(rows)]
    return Decoder(weights, 1, 64, Pool(threads), half=False, inputs=32).step(*step), Reference(weights, 1, 64, half=False).step(*step)


@native
@settings(max_examples=40, deadline=None)
@given(st.lists(ffns(), min_size=1, max_size=2), st.sampled_from([4, 8, 32]), st.sampled_from([1, 2, 8, 9, 30]), st.integers(1, 3), st.integers(0, 9))
def test_every_kind_equals_the_reference(kinds, bits, rows, threads, seed):
    """A neuron whose value stands at its threshold may fall on either side by rounding, so few may differ, and by little."""
    made = decoder(*(layer(ffn, bits, neurons=64 * (2 + at), seed=seed + at) for at, ffn in enumerate(kinds)))
    fast, plain = both(made, rows, threads)
    np.testing.assert_allclose(fast, plain, rtol=1e-3, atol=1e-2)


@native
@pytest.mark.parametrize("kind", ["gate-first", "product", "plain"])
@pytest.mark.parametrize("rows", [1, 20])
def test_what_is_silenced_wholly_adds_nothing(kind, rows):
    ffn = Ffn(kind, "relu", 1e9)
    whole = layer(ffn)
    without = Layer(whole.attention_norm, whole.ffn_norm, {**whole.matrices, "down": pack_by_neuron(torch.zeros(160, HIDDEN))}, ffn)
    found, expected = both(decoder(whole), rows, 2)[0], both(decoder(without), rows, 2)[0]
    assert np.array_equal(found, expected)


@native
@pytest.mark.parametrize("kind", ["gated", "gate-first", "product", "plain", "experts"])
@pytest.mark.parametrize("rows", [1, 12])
def test_nan_is_not_silenced(kind, rows):
    made = layer(Ffn(kind, "relu", experts=Experts(4, 4) if kind == "experts" else None))
    name = "experts.0.gate" if kind == "experts" else "up" if kind == "plain" else "gate"
    weights = unpack(made.matrices[name]).copy()
    weights[3] = float("nan")
    broken = Layer(made.attention_norm, made.ffn_norm, {**made.matrices, name: pack(weights)}, made.ffn)
    assert np.isnan(both(decoder(broken), rows, 2)[0]).all()


def test_the_gated_kinds_without_a_threshold_are_the_dense_one():
    dense = layer(Ffn("gated", "relu"))
    up, down = unpack(dense.matrices["up"]), unpack(dense.matrices["down"]).T
    x = torch.randn(HIDDEN)
    for kind in ("gate-first", "product"):
        there = dense.matrices | {"up": (pack_by_neuron if kind == "gate-first" else pack)(up), "down": pack_by_neuron(down)}
        np.testing.assert_allclose(
            feed_forward(Layer(dense.attention_norm, dense.ffn_norm, there, Ffn(kind, "relu")), x), feed_forward(dense, x), rtol=1e-5, atol=1e-5
        )


def test_all_experts_with_weight_one_are_one_wide_part():
    whole = layer(Ffn("gated"), neurons=256)
    gate, up, down = (unpack(whole.matrices[name]) for name in ("gate", "up", "down"))
    matrices = dict(whole.matrices) | {"router": pack(torch.randn(4, HIDDEN))}
    for i, at in enumerate(torch.arange(256).chunk(4)):
        matrices |= {f"experts.{i}.gate": pack(gate[at]), f"experts.{i}.up": pack(up[at]), f"experts.{i}.down": pack(down[:, at])}
    split = Layer(whole.attention_norm, whole.ffn_norm, matrices, Ffn("experts", experts=Experts(4, 4, weights="ones")))
    x = torch.randn(HIDDEN)
    np.testing.assert_allclose(feed_forward(split, x), feed_forward(whole, x), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_what_was_packed_by_neuron_comes_back_bit_for_bit(shape):
    bits, rows, groups, group, seed = shape
    given_ = codes(bits, rows, groups * group, group, seed)
    packed = pack_by_neuron(given_)
    found = unpack(packed)
    assert packed.data.size == packed_bytes(rows, groups * group, bits, group, "neurons")
    assert np.array_equal(found.codes, given_.codes) and np.array_equal(found.scale, given_.scale) and np.array_equal(found.offset, given_.offset)
    weights = torch.randn(rows, groups * group)
    assert np.array_equal(unpack(pack_by_neuron(weights)), weights)


@native
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same(isa):
    program = f"""
import numpy as np
from lissome.kernels.decoder.ffn import Experts, Ffn
from tests.kernels.decoder.test_ffn import both, decoder, layer
from lissome.kernels.library import library
assert library().isa in ({isa!r}, "portable")
for ffn in (Ffn("gate-first", "silu", 0.1), Ffn("plain", "relu2"), Ffn("product", "relu", 0.1), Ffn("experts", experts=Experts(4, 2, shared=True))):
    for bits in (4, 8, 32):
        for rows in (1, 10):
            np.testing.assert_allclose(*both(decoder(layer(ffn, bits)), rows, 2), rtol=1e-3, atol=1e-2)
"""
    ran = subprocess.run([sys.executable, "-c", program], env={**os.environ, "LISSOME_ISA": isa}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ffn("gate-first", threshold=-0.1), "a threshold of -0.1 is no size of an activation"),
        (lambda: Ffn("gate-first", threshold=float("nan")), "a threshold of nan is no size"),
        (lambda: Ffn("gated", threshold=0.1), "a gated feed-forward part has no threshold"),
        (lambda: Ffn("gated", "gelu"), 'a "gated" feed-forward part with gelu is not offered'),
        (lambda: Ffn("experts"), "lacks experts"),
        (lambda: Experts(4, 5), "5 of 4 experts cannot be active"),
        (lambda: Experts(4, 2, bias=torch.zeros(3)), r"a bias of shape \[3\] does not fit 4 experts"),
        (lambda: Layer(torch.ones(1), torch.ones(1), {}, Ffn("plain")), 'a plain feed-forward part lacks its matrix "up"'),
        (lambda: Layer(torch.ones(1), torch.ones(1), layer(Ffn()).matrices, Ffn("gate-first")), '"up" of a gate-first feed-forward part is laid out in tiles'),
        (lambda: Packed(torch.zeros(5, dtype=torch.uint8), 16, 32, 4, 32, "neurons"), "5 bytes cannot be 16 x 32 weights of 4 bits"),
    ],
)
def test_what_makes_no_sense_is_named(make, message):
    with pytest.raises(BadInput, match=message):
        make()


@native
def test_matrices_of_other_sizes_are_refused():
    made = layer(Ffn("gate-first"))
    wrong = Layer(made.attention_norm, made.ffn_norm, {**made.matrices, "down": pack_by_neuron(torch.zeros(64, HIDDEN))}, made.ffn)
    with pytest.raises(BadInput, match="refused its arguments"):
        Decoder(decoder(wrong), 1, 8, Pool(1)).step(*(torch.zeros(1) for _ in range(4)))


def test_a_decoder_of_transformers_is_gated():
    assert [one.ffn for one in from_llama(llama()).layers] == [Ffn(), Ffn()]
