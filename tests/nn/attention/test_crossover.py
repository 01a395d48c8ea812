"""Where visiting blocks pays: a step of a decoder is judged by its own costs, not by a prompt's."""

from __future__ import annotations

import pytest
import torch

from lissome.kernels.library import library
from lissome.nn.attention import attend as module
from lissome.nn.attention.crossover import Costs, costs
from lissome.nn.attention.patterns import select, window
from lissome.nn.attention.sight import Sight

native = pytest.mark.skipif(not library().handle, reason="no native kernel here")


def way(queries, keys, pattern, dtype=torch.float32):
    q, k = torch.zeros(1, 9, queries, 64, dtype=dtype), torch.zeros(1, 3, keys, 64, dtype=dtype)
    return module._way(q, k, k, select(pattern, Sight(queries, keys, keys - queries, 9)), "auto")


def test_visits_are_weighed_against_pairs():
    selection = select(window(64), Sight(640, 640))
    assert selection.visits == 19
    assert Costs(call=5, visit=1, pair=1e-4).pays(selection, 1, 2)  # 5 + 19 * 2 < 1e-4 * 2 * 640 * 640
    assert not Costs(call=50, visit=1, pair=1e-4).pays(selection, 1, 2)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_steps_costs_are_its_own(dtype, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "costs", lambda *given: asked.append(given[1:]) or Costs(0, 0, 1))
    assert way(1, 256, window(64), dtype) == way(256, 256, window(64), dtype) == "native"
    assert asked == [(dtype, True), (dtype, False)]


@native
@pytest.mark.parametrize("few", [True, False])
def test_costs_are_measured_and_kept(few):
    found = costs(torch.get_num_threads(), torch.float32, few)
    assert found.visit > 0
    assert found.pair > 0
    assert costs(torch.get_num_threads(), torch.float32, few) == found
