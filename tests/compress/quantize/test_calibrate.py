from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from torch import nn

from lissome.compress.quantize.calibrate import BINS, calibrate, centres, entropy_range, extremes, histograms, mse_range, percentile_range, uint8_range
from lissome.compress.quantize.config import QuantizeConfig
from lissome.core.errors import BadInput, BadModel
from lissome.train.batches import ordered


def histogram(values):
    counts, _ = np.histogram(values, BINS, (values.min(), values.max()))
    return counts.astype(float), float(values.min()), float(values.max())


def error(values, low, high):
    kept = uint8_range(low, high)
    whole = np.clip(np.rint(values / kept.scale) + kept.zero, 0, 255)
    return np.mean(((whole - kept.zero) * kept.scale - values) ** 2)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_a_range_holds_both_ends_and_zero_exactly(a, b):
    low, high = min(a, b, 0), max(a, b, 0)
    kept = uint8_range(min(a, b), max(a, b))
    assert 0 <= kept.zero <= 255
    assert kept.scale > 0
    assert np.float32(kept.scale) == kept.scale, "what is stored is what is used"
    assert -kept.zero * kept.scale <= low + 0.51 * kept.scale
    assert (255 - kept.zero) * kept.scale >= high - 0.51 * kept.scale


def test_nothing_but_zeros():
    assert uint8_range(0.0, 0.0).scale == 1.0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([80.0, 90.0, 99.0]))
def test_percentile_is_numpys(seed, percentile):
    values = np.random.default_rng(seed).normal(size=20_000)
    low, high = percentile_range(*histogram(values), percentile)
    width = (values.max() - values.min()) / BINS
    assert low == pytest.approx(np.quantile(values, 1 - percentile / 100), abs=2 * width)
    assert high == pytest.approx(np.quantile(values, percentile / 100), abs=2 * width)


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "outlier"])
def test_mse_beats_every_other_range(kind):
    rng = np.random.default_rng(0)
    values = rng.laplace(size=20_000) if kind == "laplace" else rng.normal(size=20_000)
    values = np.maximum(values, 0) if kind == "relu" else np.append(values, 200.0) if kind == "outlier" else values
    counts = histogram(values)
    best = error(values, *mse_range(*counts, 0))
    others = [(values.min(), values.max()), percentile_range(*counts, 99.9), entropy_range(*counts, 0)]
    assert all(best <= 1.02 * error(values, *other) for other in others)


@pytest.mark.parametrize("kind", ["relu", "outlier"])
def test_entropy_is_a_plain_search(kind):
    """Against Migacz's procedure written out, window by window and level by level, with scipy's divergence."""
    values = np.random.default_rng(0).normal(size=30_000)
    values = np.maximum(values, 0) if kind == "relu" else np.append(values, 60.0) if kind == "outlier" else values
    counts, low, high = histogram(values)
    edges, found = np.linspace(low, high, BINS + 1), []
    for share in np.linspace(0.1, 1.0, 91):
        first = max(i for i in range(BINS) if edges[i] <= low * share)
        last = min(i for i in range(BINS + 1) if edges[i] >= high * share)
        if last - first < 256:
            continue
        p = counts[first:last].copy()
        p[0], p[-1] = p[0] + counts[:first].sum(), p[-1] + counts[last:].sum()
        q = np.zeros(last - first)
        for level in range(256):
            bins = np.arange(-(-level * (last - first) // 256), -(-(level + 1) * (last - first) // 256))
            filled = bins[counts[first + bins] > 0]
            q[filled] = counts[first + bins].sum() / max(1, len(filled))
        found.append((entropy(p, np.maximum(q, 1e-4)), edges[first], edges[last]))
    assert entropy_range(counts, low, high, 0) == pytest.approx(min(found)[1:])


def test_empty_histograms_keep_the_extremes():
    for method in (percentile_range, mse_range, entropy_range):
        assert method(np.zeros(BINS), -1.0, 2.0, 99.9) == (-1.0, 2.0)
    assert centres(0.0, 2048.0)[:2].tolist() == [0.5, 1.5]


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x):
        return self.line(2 * x)


def test_streaming_sees_what_the_whole_holds():
    torch.manual_seed(0)
    batches = [torch.randn(n, 4) for n in (3, 9, 1, 7)]
    data, module = ordered([(b, torch.arange(len(b))) for b in batches]), Doubled()
    seen = extremes(module, data, [("line", "input"), ("line", "output")], ["line"])
    everything = 2 * torch.cat(batches)
    point = ("line", "input")
    assert (seen.low[point], seen.high[point]) == (everything.min(), everything.max())
    assert torch.equal(seen.channels["line"], everything.abs().amax(0))
    counts = histograms(module, data, seen)[point]
    expected = torch.histc(everything, BINS, float(everything.min()), float(everything.max()))
    assert counts.sum() == everything.numel()
    assert np.abs(counts - expected.numpy()).sum() <= 2
    assert not module.line._forward_hooks and not module.line._forward_pre_hooks


def test_nan_and_batches_of_something_else():
    module = Doubled()
    with pytest.raises(BadModel, match="NaN or infinity in what goes into the layer line"):
        calibrate(module, ordered([torch.full((9, 4), torch.nan)]), [("line", "input")], QuantizeConfig())
    with pytest.raises(BadInput, match="inputs and labels apart in a batch of str"):
        calibrate(module, ordered(["text"]), [("line", "input")], QuantizeConfig())
