"""Every backend is held to the plain one, forward and backward, on shapes nobody would choose."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput, BadTensor
from lissome.kernels.attention import chunked, native, reference
from lissome.kernels.attention.selection import FULL, TILE, Selection, of_mask, packed, unpacked
from lissome.kernels.library import library

needs_native = pytest.mark.skipif(library().handle is None, reason=f"no native kernels: {library().trouble}")
BACKENDS = [pytest.param(chunked, id="chunked"), pytest.param(native, id="native", marks=needs_native)]


@st.composite
def cases(draw):
    """Inputs in float64 and a selection: odd lengths, groups of heads, queries from the middle on, empty rows, tokens of their own."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, kv, group = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    queries, offset = draw(st.integers(1, 150)), draw(st.integers(0, 150))
    keys = draw(st.integers(1, 200))
    dim, value_dim = draw(st.sampled_from([(8, 8), (64, 64), (20, 33), (1, 3), (72, 40)]))
    shape = draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, kv * group])), queries, keys
    mask = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.02, 0.5, 0.99, 2.0]))
    tokens = None
    if draw(st.booleans()):
        count = draw(st.integers(1, min(keys, 70)))
        tokens = torch.stack([torch.randperm(keys, generator=generator)[:count].sort().values for _ in range(shape[0] * shape[1])]).view(*shape[:2], count)
    q, k, v = (
        torch.randn(batch, heads, length, width, generator=generator, dtype=torch.float64)
        for heads, length, width in ((kv * group, queries, dim), (kv, keys, dim), (kv, keys, value_dim))
    )
    return q, k, v, of_mask(mask, offset, tokens), mask


def gradients(q, k, v, selection, grad):
    leaves = [one.clone().requires_grad_() for one in (q, k, v)]
    return torch.autograd.grad(reference.attend(*leaves, selection, 0.3), leaves, grad)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_a_selection_is_the_mask_it_was_made_of(case):
    _, _, _, selection, mask = case
    assert torch.equal(selection.dense(), mask)
    assert selection.pairs() >= int(mask.sum())
    assert (selection.blocks.diff(dim=-1)[selection.blocks[..., 1:] >= 0] > 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@given(case=cases())
@settings(max_examples=40, deadline=None)
def test_backends_equal_the_reference(backend, dtype, case):
    q, k, v, selection, _ = case
    if backend is native and dtype == torch.float64:
        assert "float32 and bfloat16" in native.fits(q, v)
        return
    q, k, v = (one.to(dtype) for one in (q, k, v))
    wide = [one.double() for one in (q, k, v)]
    grad = torch.randn(*q.shape[:3], v.shape[-1], generator=torch.Generator().manual_seed(1)).to(dtype)
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 5e-2}[dtype]
    out, lse = backend.forward(q, k, v, selection, 0.3)
    expected = reference.attend(*wide, selection, 0.3)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(lse == float("-inf"), (~selection.dense().any(-1)).expand(lse.shape))
    found = backend.backward(grad, q, k, v, out, lse, selection, 0.3)
    for one, right in zip(found, gradients(*wide, selection, grad.double()), strict=True):
        torch.testing.assert_close(one.double(), right, atol=tolerance * 10, rtol=tolerance * 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_expanded_tensors_are_read_where_they_lie(backend):
    q = torch.randn(2, 70, 4, 16).transpose(1, 2)
    k = torch.randn(1, 90, 2, 16).transpose(1, 2).expand(2, -1, -1, -1)
    v = torch.randn(2, 2, 16, 90).transpose(2, 3)
    selection = of_mask(torch.rand(1, 1, 70, 90) < 0.5)
    torch.testing.assert_close(backend.forward(q, k, v, selection, 0.25)[0], reference.attend(q, k, v, selection, 0.25), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_scores_do_not_overflow(backend):
    q, k, v = (100 * torch.randn(1, 2, 130, 32) for _ in range(3))
    selection = of_mask(torch.ones(1, 1, 130, 130, dtype=torch.bool).tril())
    out, _ = backend.forward(q, k, v, selection, 1.0)
    torch.testing.assert_close(out, reference.attend(q, k, v, selection, 1.0), atol=0.05, rtol=1e-3)


@needs_native
def test_the_native_gradient_has_the_same_bits_in_every_call():
    q, k, v, grad = (torch.randn(1, 3, 500, 32) for _ in range(4))
    selection = of_mask(torch.ones(1, 1, 500, 500, dtype=torch.bool).tril())
    out, lse = native.forward(q, k, v, selection, 0.2)
    first, second = (native.backward(grad, q, k, v, out, lse, selection, 0.2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_native
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_lower_instruction_sets_compute_the_same(isa):
    """They are chosen once a process, so each has one of its own."""
    program = """
import torch
from lissome.kernels.attention import native, reference
from lissome.kernels.attention.selection import of_mask
from lissome.kernels.library import library
torch.manual_seed(0)
q, k, v = torch.randn(1, 4, 150, 40), torch.randn(1, 2, 170, 40), torch.randn(1, 2, 170, 24)
selection = of_mask(torch.rand(1, 1, 150, 170) < 0.7, tokens=torch.tensor([[[3, 90]]]))
error = (native.forward(q, k, v, selection, 0.2)[0] - reference.attend(q, k, v, selection, 0.2)).abs().max()
print(library().isa, bool(error < 1e-5))
"""
    ran = subprocess.run([sys.executable, "-c", program], env={**os.environ, "LISSOME_ISA": isa}, capture_output=True, text=True, check=True)
    assert ran.stdout.split()[1] == "True"
    assert isa == "avx2" or ran.stdout.split()[0] == "portable"


def test_bits_round_trip():
    masks = torch.rand(5, TILE, TILE) < 0.5
    assert torch.equal(unpacked(packed(masks)), masks)


def test_a_key_visible_twice_is_refused():
    once = of_mask(torch.ones(1, 1, 64, 64, dtype=torch.bool))
    blocks = torch.tensor([0, 1], dtype=torch.int32).view(1, 1, 1, 2)
    twice = Selection(blocks, torch.full_like(blocks, FULL), once.bits, 64, 64, tokens=torch.tensor([[[7]]]))
    with pytest.raises(BadInput, match="visible to a query twice"):
        twice.dense()


def altered(**parts):
    """A sound selection of two tiles with tokens, with some of its parts replaced."""
    sound = of_mask(torch.ones(1, 1, 100, 128, dtype=torch.bool).tril(3), tokens=torch.tensor([[[3, 90]]]))
    sound.check()
    return dataclasses.replace(sound, **{name: make(sound) for name, make in parts.items()})


UNSOUND = [
    ({"blocks": lambda s: s.blocks.clamp(min=100000)}, "blocks from 100000 to 100000, which must be from -1 to 2"),
    ({"blocks": lambda s: s.blocks - 3}, "blocks from -3 to -1, which"),
    ({"blocks": lambda s: s.blocks.flip(-1)}, "not rising"),
    ({"blocks": lambda s: s.blocks.clamp(0, 0)}, "not rising"),
    ({"masks": lambda s: s.masks + 10**8}, "masks from .* to 10.*, which must be from -1 to"),
    ({"tokens": lambda s: s.tokens + 10**9}, "tokens from 1000000003 to 1000000090, which must be from 0 to 127"),
    ({"tokens": lambda s: s.tokens.expand(1, 3, -1)}, r"tokens are \[1, 3, 2\], for blocks \[1, 1, 2, 3\]"),
    ({"blocks": lambda s: s.blocks.long()}, "blocks are .* torch.int64, not 4 dimensions of torch.int32"),
    ({"bits": lambda s: s.bits[0]}, r"bits are \[64\] torch.int64, not 2 dimensions"),
    ({"bits": lambda s: s.bits[:, :5]}, r"bits are \[\d, 5\], not rows of 64"),
    ({"bits": lambda s: s.bits.to("meta")}, "blocks are on cpu, bits on meta"),
    ({"masks": lambda s: s.masks[:, :, :1]}, r"blocks are \[1, 1, 2, 3\] and masks \[1, 1, 1, 3\]"),
    ({"offset": lambda s: 30}, r"blocks \[1, 1, 2, 3\] are for 2 tiles, and the queries lie in 3"),
    ({"offset": lambda s: -1}, "from -1 on"),
]


@pytest.mark.parametrize(("parts", "said"), UNSOUND, ids=[said for _, said in UNSOUND])
def test_a_selection_that_reaches_outside_of_its_tensors_is_refused(parts, said):
    selection = altered(**parts)
    with pytest.raises(BadTensor, match=said):
        selection.check()
    if library().handle is not None:
        with pytest.raises(BadTensor, match=said):
            native.forward(*(torch.randn(1, 1, length, 8) for length in (100, 128, 128)), selection, 0.3)
