"""The named patterns: what they are, that they draw themselves, and that a model takes them by name."""

from __future__ import annotations

import pytest
import torch

from lissome.nn.attention.attend import attend
from lissome.nn.attention.patterns import select
from lissome.nn.attention.variants import VARIANTS, routed
from lissome.nn.attention.written import parse
from tests.nn.attention.test_patterns import inputs, looked, two_futures

WRITTEN = {
    "window-64-entropy-8": "window(64) | top_tokens(8, feature_entropy)",
    "window-512-routed": "per_head(window(512), window(384) | top_blocks(2), window(256) | top_blocks(4), window(128) | top_blocks(6))",
    "top-k": "window(64) | top_share(0.25)",
    "multi-scale": "per_head(window(32), window(64), window(128))",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_writes_itself_out(name):
    assert str(parse(name)) == WRITTEN[name]
    assert str(parse(WRITTEN[name])) == WRITTEN[name]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
def test_a_variant_draws_itself(name, causal):
    lines = parse(name).draw(512, causal=causal, cells=16).splitlines()
    assert len(lines) == 16
    assert all(len(line) <= (2 * at + 2 if causal else 32) for at, line in enumerate(lines))
    assert lines[-1].endswith(("*", ":", "#", "."))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_sees_no_future(name):
    before, after = (attend(*tensors, select(parse(name), looked(*tensors[:2])), backend="chunked")[:, :, :333] for tensors in two_futures(700, 332))
    torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-6)


def test_routed_heads_spend_their_keys_as_told():
    assert str(routed([1.0, 0.5, 0.0], 256)) == "per_head(window(256), window(128) | top_blocks(2), window(64) | top_blocks(3))"
    q, k, _ = inputs(1000)
    seen = select(routed([1.0, 0.5, 0.0], 256), looked(q, k)).dense()
    assert bool((seen[:, :, 640:].sum(-1) <= 256 + 63).all())
    assert bool((seen[:, :, 640:].sum(-1) >= 256 - 63).all())


@pytest.mark.parametrize(
    ("ratios", "width", "said"),
    [([], 512, "no ratios"), ([1.2], 512, "no ratios"), ([0.5], 100, "not a whole number of blocks"), ([0.5], 0, "not a whole number of blocks")],
)
def test_ratios_that_make_no_sense_are_refused(ratios, width, said):
    with pytest.raises(ValueError, match=said):
        routed(ratios, width)
