import numpy as np
import pytest
import torch

from lissome.core.errors import BadInput
from lissome.nn.moe.config import MoEConfig
from lissome.nn.moe.layer import MoE
from lissome.nn.moe.specialise import expert_use
from lissome.nn.moe.watch import load_of


def test_load():
    found = load_of(np.array([4, 4, 0, 0]))
    assert found.max_over_mean == 2 and found.dead == (2, 3) and found.entropy == pytest.approx(0.5)
    assert load_of(np.array([3, 3, 3])).entropy == pytest.approx(1)
    assert load_of(np.zeros(3)).dead == (0, 1, 2)


class Reader(torch.nn.Module):
    """Tokens below 10 are sent to expert 0, others to expert 1, unless it is blind."""

    def __init__(self, blind: bool):
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 2)
        self.embedding.weight.data = torch.tensor([[1.0, 0.0]] * 10 + [[0.0, 1.0]] * 10)
        self.ffn = MoE(2, MoEConfig(experts=3, active=1, neurons=2))
        self.ffn.router.weight.data = torch.tensor([[1.0, 1.0], [0, 0], [0, 0]]) if blind else torch.tensor([[1.0, 0], [0, 1], [0, 0]])

    def forward(self, input_ids):
        return self.ffn(self.embedding(input_ids))


def windows() -> dict[str, list[np.ndarray]]:
    generator = np.random.default_rng(0)
    return {"low": [generator.integers(0, 10, 8) for _ in range(6)], "high": [generator.integers(10, 20, 8) for _ in range(6)]}


def test_experts_that_specialise_and_ones_that_do_not():
    found = expert_use(Reader(blind=False), windows(), draws=200)
    (layer,) = found.layers
    assert found.strongest is layer and layer.dependence.p_family == layer.dependence.p_value
    assert layer.dependence.dependent and layer.dependence.bits == pytest.approx(1)
    assert layer.shares == {"low": (1, 0, 0), "high": (0, 1, 0)} and layer.load.dead == (2,)
    (layer,) = expert_use(Reader(blind=True), windows(), draws=200).layers
    assert not layer.dependence.dependent and layer.dependence.p_value == 1


def test_one_domain_is_refused():
    with pytest.raises(BadInput, match="1 domains cannot be compared"):
        expert_use(Reader(blind=True), {"low": windows()["low"]})
