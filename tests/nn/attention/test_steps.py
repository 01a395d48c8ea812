"""Steps of a decoder: what was kept of a tile shows each query what it would have chosen by itself."""

from __future__ import annotations

import pytest
import torch

from lissome.nn.attention import steps
from lissome.nn.attention.past import Past
from lissome.nn.attention.patterns import select
from lissome.nn.attention.written import parse
from tests.nn.attention.test_patterns import inputs

PATTERNS = [
    "window(70) | sink(4)",
    "window(20) | top_blocks(2)",
    "window(64) | top_blocks(1, leading_query) | sink(2)",
    "top_share(0.4) | window(9)",
    "per_head(window(9), window(64) | top_blocks(1), everything(), window(100), sink(1), window(1))",
    "window(64) | tokens([3, 150])",
    "window(64) | top_tokens(4, feature_entropy)",
]


@pytest.mark.parametrize("written", PATTERNS)
@pytest.mark.parametrize("prompt", [1, 63, 64, 130])
def test_a_step_sees_what_it_would_choose(written, prompt):
    pattern, (q, k, _) = parse(written), inputs(270)
    kept, fresh = Past(), Past()
    for end in [prompt, *range(prompt + 1, 270)]:
        begin = 0 if end == prompt else end - 1
        part = q[:, :, begin:end], k[:, :, :end]
        found = steps.selected(pattern, kept.look(*part))
        found.check()
        assert torch.equal(found.dense(), select(pattern, fresh.look(*part)).dense())


def test_a_tile_is_asked_once(monkeypatch):
    pattern, (q, k, _) = parse("window(20) | top_blocks(2)"), inputs(200)
    asked, past = [], Past()
    steps.selected(pattern, past.look(q[:, :, :60], k[:, :, :60]))
    monkeypatch.setattr(steps, "select", lambda *given: asked.append(given[1].queries) or select(*given))
    for end in range(61, 200):
        steps.selected(pattern, past.look(q[:, :, end - 1 : end], k[:, :, :end]))
    assert asked == [64, 64, 64, 64]  # the tiles of tokens 60, 64, 128 and 192
