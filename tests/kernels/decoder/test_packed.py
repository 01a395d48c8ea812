import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput
from lissome.kernels.decoder.native import Pool, multiply
from lissome.kernels.decoder.packed import Codes, Packed, pack, unpack
from lissome.kernels.library import library

native = pytest.mark.skipif(library().handle is None, reason=f"no native kernels: {library().trouble}")


def codes(bits: int, rows: int, columns: int, group: int, seed: int = 0) -> Codes:
    draw = torch.Generator().manual_seed(seed)
    low, high, kind = (0, 16, torch.uint8) if bits == 4 else (-128, 128, torch.int8)
    made = torch.randint(low, high, (rows, columns), generator=draw).to(kind)
    scale, offset = (torch.randn(rows, columns // group, generator=draw).half() for _ in range(2))
    return Codes(made, scale, offset)


shapes = st.tuples(st.sampled_from([4, 8]), st.integers(1, 70), st.integers(1, 5), st.sampled_from([32, 64, 128]), st.integers(0, 99))


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_what_was_packed_comes_back_bit_for_bit(shape):
    bits, rows, groups, group, seed = shape
    given_ = codes(bits, rows, groups * group, group, seed)
    found = unpack(pack(given_))
    assert isinstance(found, Codes) and found.group == group and found.bits == bits
    assert np.array_equal(found.codes, given_.codes) and np.array_equal(found.scale, given_.scale) and np.array_equal(found.offset, given_.offset)


def test_floats_come_back_too():
    weights = torch.randn(37, 96)
    assert np.array_equal(unpack(pack(weights)), weights)


@native
@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 40), st.integers(1, 3))
def test_native_products_equal_those_of_the_dense_weights(shape, n, threads):
    bits, rows, groups, group, seed = shape
    weights = codes(bits, rows, groups * group, group, seed)
    x = torch.randn(n, groups * group, generator=torch.Generator().manual_seed(seed))
    x, dense = x.double().numpy(), weights.dense().astype(np.float64)
    found = multiply(pack(weights), x, Pool(threads))
    size = np.abs(x) @ np.abs(dense).T  # rounding grows with what is summed, not with the sum
    assert (np.abs(found - x @ dense.T) <= 1e-5 * size + 1e-6).all()


@native
@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(2, 140), st.integers(1, 3), st.sampled_from([8, 16]), st.booleans())
def test_native_products_of_rounded_inputs_err_by_that_rounding(shape, n, threads, inputs, mixed):
    """Every input is off by at most half a step: the way from the smallest to the largest of its 32 columns over 254, or the largest over 32,767."""
    bits, rows, groups, group, seed = shape
    weights = codes(bits, rows, groups * group, group, seed)
    x = torch.randn(n, groups * group, generator=torch.Generator().manual_seed(seed))
    x[:, ::32] += torch.randn(n, 1) * 10  # a number that stands out, on either side
    dense, blocks = torch.from_numpy(weights.dense()).double(), x.double().view(n, -1, 32)
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    step = ((high - low) / 254 if inputs == 8 else torch.maximum(high, -low) / 32767).expand(-1, -1, 32).flatten(1)
    packed = dataclasses.replace(pack(weights), inputs=inputs)
    found = torch.from_numpy(multiply(packed, x, Pool(threads), "mixed" if mixed else inputs)).double()
    off = step / 2 @ dense.abs().T
    codes_too = (1e-5 * x.abs().double()) @ (
        dense.abs() + 128 * torch.from_numpy(weights.scale).abs().double().repeat_interleave(group, 1)
    ).T  # floats' own rounding
    assert ((found - x.double() @ dense.T).abs() <= 1.001 * off + codes_too + 1e-6).all()


@native
@pytest.mark.parametrize("inputs", [8, 16])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1.0, 1e30])
def test_native_products_of_inputs_that_are_all_the_same(inputs, size):
    """A block without any width, of any size."""
    weights = codes(8, 20, 64, 32)
    weights.scale[:], weights.offset[:] = 2**-10, 0
    x = torch.full((5, 64), -size)
    dense = torch.from_numpy(weights.dense()).double()
    found = torch.from_numpy(multiply(pack(weights), x, Pool(1), inputs)).double()
    assert ((found - x.double() @ dense.T).abs() <= 1e-4 * x.abs().double() @ dense.abs().T + 1e-30).all()


@native
@pytest.mark.parametrize("inputs", [8, 16, 32])
def test_native_products_of_what_is_not_finite_are_not_either(inputs):
    x = torch.randn(3, 64)
    x[0, 5], x[2, 40] = float("nan"), float("inf")
    found = torch.from_numpy(multiply(pack(codes(4, 16, 64, 32)), x, Pool(1), inputs))
    assert not found[0].isfinite().any() and found[1].isfinite().all() and not found[2].isfinite().any()


@native
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_a_lower_instruction_set_gives_the_same(isa):
    """In a process of its own, since the choice is made once."""
    program = (
        "import torch; from tests.kernels.decoder.test_packed import codes, multiply, pack, Pool\n"
        "w = codes(4, 33, 96, 32); x = torch.randn(12, 96, generator=torch.Generator().manual_seed(1))\n"
        "assert (multiply(pack(w), x, Pool(2), 8) - x.numpy() @ w.dense().T).__abs__().max() < 1e-4\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"LISSOME_ISA": isa}, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@native
@pytest.mark.parametrize("n", [1, 8, 9, 70])
def test_native_products_of_floats(n):
    weights, x = torch.randn(50, 352), torch.randn(n, 352)
    np.testing.assert_allclose(multiply(pack(weights), x, Pool(2)), x @ weights.T, rtol=1e-4, atol=1e-4)


@native
def test_extreme_scales_and_nan_come_through():
    weights = codes(4, 16, 32, 32)
    weights.scale[0], weights.scale[1], weights.offset[2] = 6e-8, 65504, float("nan")
    found = multiply(pack(weights), np.ones((1, 32)), Pool(1))[0]
    expected = weights.dense().sum(1)
    assert np.isnan(found[2])
    np.testing.assert_allclose(found[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pack(torch.randn(4, 33)), "4 x 33 weights cannot be packed in groups of 32"),
        (lambda: pack(codes(4, 4, 96, 48)), "weights of 4 bits in groups of 48 are not offered"),
        (lambda: pack(Codes(torch.full((2, 32), 16, dtype=torch.uint8), torch.ones(2, 1).half(), torch.ones(2, 1).half())), "a code of 16 does not fit"),
        (lambda: dataclasses.replace(pack(torch.randn(4, 32)), inputs=12), "inputs of 12 bits are not offered"),
        (lambda: Packed(torch.zeros(5, dtype=torch.uint8), 16, 32, 4, 32), "5 bytes cannot be 16 x 32 weights of 4 bits"),
    ],
)
def test_what_cannot_be_packed_is_named(make, message):
    with pytest.raises(BadInput, match=message):
        make()


@native
@pytest.mark.parametrize("inputs", [0, 12, "8", None])
def test_roundings_that_are_not_offered_are_named(inputs):
    with pytest.raises(BadInput, match=f"inputs of {inputs} bits are not offered") as caught:
        multiply(pack(torch.randn(4, 32)), torch.randn(1, 32), Pool(1), inputs)
    assert caught.value.expected == "mixed, 8, 16, 32"


@native
def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(BadInput, match=r"inputs \[1, 64\] do not fit 4 x 32 weights"):
        multiply(pack(torch.randn(4, 32)), torch.randn(1, 64), Pool(1))
