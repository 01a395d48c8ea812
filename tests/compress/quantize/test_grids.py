from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.compress.quantize.feedback import BLOCK, Inputs, channel_scales, feed_back, output_error, round_by_inputs
from lissome.compress.quantize.grids import Rule, decoder_rule, find_grid
from lissome.core.errors import BadInput, BadModel
from lissome.kernels.decoder.packed import pack, unpack

torch.set_num_threads(1)
KINDS = st.sampled_from(["rtn", "absolute", "mse"])


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def on_grid(seed: int, symmetric: bool, group: int, rows: int = 5, groups: int = 3) -> torch.Tensor:
    """Weights that lie on a grid of half precision; every group uses its lowest and its highest code."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, groups, group), generator=generator).float()
    codes[..., 0], codes[..., 1] = 0, 15
    scale = (torch.rand(rows, groups, 1, generator=generator) + 0.01).half().float()
    offset = -8 * scale if symmetric else (torch.randn(rows, groups, 1, generator=generator)).half().float()
    return (codes * scale + offset).flatten(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([32, 64, 128]), KINDS)
def test_what_lies_on_a_grid_comes_back_bit_equal(seed, symmetric, group, search):
    weight = on_grid(seed, symmetric, group)
    grid = find_grid(weight, group, decoder_rule(4, symmetric), search)
    codes = grid.packable(grid.codes(weight))
    assert np.array_equal(codes.dense(), weight)
    assert np.array_equal(unpack(pack(codes)).dense(), weight)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7))
def test_a_symmetric_grid_comes_back_whatever_codes_are_used(seed, largest):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-largest, largest + 1, (3, 2, 32), generator=generator).float()
    codes[..., 0], codes[..., 1] = largest, 1  # 1: no coarser grid holds them all
    weight = (codes * (torch.rand(3, 2, 1, generator=generator) + 0.01).half().float()).flatten(1)
    assert np.array_equal(find_grid(weight, 32, decoder_rule(4, True), "mse").rounded(weight), weight)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([32, 64]), st.booleans())
def test_a_search_is_never_worse_than_rounding_by_the_extremes(seed, symmetric, group, weighted):
    weight = drawn(seed, 4, 128) ** 3
    rule, importance = decoder_rule(4, symmetric), drawn(seed + 1, 128).square() if weighted else torch.ones(128)
    counts = importance if weighted else None
    plain, absolute, squared = (find_grid(weight, group, rule, kind, counts).rounded(weight) - weight for kind in ("rtn", "absolute", "mse"))
    assert bool(((squared.square() * importance).sum(1) <= (plain.square() * importance).sum(1) * (1 + 1e-5)).all())
    assert bool(((absolute.abs() * importance).sum(1) <= (plain.abs() * importance).sum(1) * (1 + 1e-5)).all())


def test_groups_of_one_weight_again_and_again():
    weight = torch.full((2, 64), 0.3)
    weight[1] = 0
    grid = find_grid(weight, 32, decoder_rule(4, False))
    np.testing.assert_allclose(grid.rounded(weight), weight, rtol=5e-4, atol=0)
    assert bool((grid.scale == 1).all())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([32, 64]), st.integers(1, 200), st.booleans())
def test_feedback_is_never_worse_than_rounding_to_the_nearest(seed, symmetric, group, count, skewed):
    """Whatever the inputs: fewer than columns (H is singular), or with channels that are far larger than the others, or silent."""
    weight, x = drawn(seed, 6, 64), drawn(seed + 1, count, 64)
    if skewed:
        x[:, 0] = 0
        x[:, 5:9] *= 100
    hessian, rule = x.T @ x, decoder_rule(4, symmetric)
    codes, grid = round_by_inputs(weight, hessian, group, rule)
    plain = find_grid(weight, group, rule, "rtn").rounded(weight)
    found, least = (output_error(weight, one, hessian) for one in (grid.values(codes), plain))
    assert bool((found <= least * (1 + 1e-4) + 1e-3).all())
    assert bool(((codes >= 0) & (codes <= 15) & (codes == codes.round())).all())


def test_feedback_pays_where_inputs_go_together():
    x = drawn(0, 2000, 8) @ drawn(1, 8, 256) + 0.1 * drawn(2, 2000, 256)
    weight, rule = drawn(3, 32, 256), decoder_rule(4, False)
    codes, grid = round_by_inputs(weight, x.T @ x, 64, rule)
    plain = find_grid(weight, 64, rule, "rtn").rounded(weight)
    assert float(((grid.values(codes) - weight) @ x.T).square().mean()) < 0.5 * float(((plain - weight) @ x.T).square().mean())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 7, 32, BLOCK]))
def test_blocks_change_nothing(seed, block):
    """The twin takes each error back in all later columns at once."""
    weight, x = drawn(seed, 3, 64), drawn(seed + 1, 200, 64)
    hessian, grid = x.T @ x, find_grid(weight, 32, decoder_rule(4, False))
    assert float((feed_back(weight, hessian, grid, block=block) == plainly(weight, hessian, grid)).float().mean()) > 0.98


def plainly(weight, hessian, grid):
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    damped = hessian.double()[order][:, order] + 0.01 * hessian.diagonal().double().mean() * torch.eye(len(hessian)).double()
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    left, found = weight.double()[:, order].clone(), torch.zeros_like(weight)
    scale, offset = (one[:, order].double() for one in grid.of_columns(weight.shape[1]))
    for at in range(len(order)):
        code = ((left[:, at] - offset[:, at]) / scale[:, at]).round().clamp(0, 15)
        found[:, order[at]] = code.float()
        error = (left[:, at] - code * scale[:, at] - offset[:, at]) / upper[at, at]
        left[:, at:] -= error[:, None] * upper[at, at:]
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_scaled_channels_are_never_worse_than_unscaled_ones(seed, symmetric):
    x = drawn(seed, 300, 64) * torch.exp(2 * drawn(seed + 1, 64))
    inputs, weights, rule = Inputs(64), [drawn(seed + 2, 8, 64), drawn(seed + 3, 4, 64)], decoder_rule(4, symmetric)
    inputs.add(x, "a matrix")
    scales = channel_scales(weights, inputs, 32, rule)

    def error(by: torch.Tensor) -> float:
        rounded = [find_grid(one * by, 32, rule, "rtn").rounded(one * by) / by for one in weights]
        return sum(float(output_error(one, found, inputs.hessian).sum()) for one, found in zip(weights, rounded, strict=True))

    assert error(scales) <= error(torch.ones(64)) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("weight", "group", "search", "error", "message"),
    [
        (torch.ones(2, 96), 64, "mse", BadInput, "2 x 96 weights cannot be in groups of 64"),
        (torch.tensor([[1.0, float("nan")] * 16]), 32, "mse", BadModel, "weights that are NaN or infinite"),
        (torch.tensor([[1e6, -1e6] * 16]), 32, "rtn", BadModel, "beyond half precision"),
        (torch.ones(2, 32), 32, "best", BadInput, 'a search for "best" is not offered'),
    ],
)
def test_what_is_wrong_is_said(weight, group, search, error, message):
    with pytest.raises(error, match=message):
        find_grid(weight, group, decoder_rule(4, False), search)


def test_inputs_that_are_no_numbers_are_named():
    with pytest.raises(BadModel, match=r"NaN or infinity in what goes into layers\.0\.down"):
        Inputs(3).add(torch.tensor([[1.0, float("nan"), 2.0]]), "layers.0.down")
    with pytest.raises(BadInput, match="no calibration input reached a matrix"):
        channel_scales([torch.ones(2, 32)], Inputs(32), 32, Rule(0, 15, False))
