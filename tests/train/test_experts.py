import pytest
import torch
from torch import nn

from lissome.nn.moe.balance import balancing_loss, rebalance
from lissome.nn.moe.config import MoEConfig
from lissome.nn.moe.layer import MoE
from lissome.nn.moe.router import switch_loss
from lissome.train.config import TrainConfig
from lissome.train.experts import Balance, balanced
from lissome.train.loop import train


def skewed(balance: str) -> nn.Module:
    """A layer whose router sends nearly everything to two experts."""
    torch.manual_seed(0)
    layer = MoE(8, MoEConfig(experts=8, active=2, neurons=8, balance=balance, rate=0.005, strength=0.3))
    with torch.no_grad():
        layer.router.weight.mul_(0.3)
        layer.router.weight[:2, 0] += 1.5  # tokens have a constant part, see below
    return nn.Sequential(layer)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(20):
        x = torch.randn(64, 8, generator=generator)
        x[:, 0] = 1
        found.append((x, x.roll(1, -1).sin()))
    return found


def loss(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (module(batch[0]) - batch[1]).square().mean()


def run(balance: str) -> tuple[float, float]:
    """Imbalance of the first ten steps and of the last tenth."""
    seen = Balance()
    result = train(skewed(balance), batches(), balanced(loss), TrainConfig(steps=200, lr=1e-2, precision="fp32", warmup=0), callbacks=[seen])
    assert len(seen.loads) == 200
    return seen.imbalance(0, 10), result.metrics["imbalance"]


@pytest.mark.parametrize("balance", ["bias", "switch"])
def test_a_skewed_start_is_balanced(balance):
    first, last = run(balance)
    assert first > 1.8 and last < 1.3


def test_without_balancing_it_stays_skewed():
    assert run("none")[1] > 1.5


def test_switch_loss_is_one_where_all_is_even_and_more_where_not():
    even = torch.full((8, 4), 0.25)
    assert switch_loss(even, torch.arange(8)[:, None] % 4) == pytest.approx(1)
    peaked = torch.eye(4)[torch.zeros(8, dtype=torch.long)]
    assert switch_loss(peaked, torch.zeros(8, 1, dtype=torch.long)) == pytest.approx(4)


def test_the_loss_is_read_once_and_only_in_training():
    model = skewed("switch").train()
    model(torch.randn(5, 8))
    assert balancing_loss(model).requires_grad and balancing_loss(model) is None
    model.eval()(torch.randn(5, 8))
    assert balancing_loss(model) is None and balancing_loss(nn.Linear(2, 2)) is None


def test_biases_move_against_the_load_and_have_no_gradient():
    model = skewed("bias").train()
    layer = model[0]
    x = torch.randn(64, 8)
    x[:, 0] = 1
    model(x)
    load = layer.load.clone()
    assert load.sum() == 128
    rebalance(model)
    assert torch.equal(layer.router.bias, 0.005 * torch.sign(load.mean() - load)) and not layer.load.any()
    assert not layer.router.bias.requires_grad and "0.router.bias" in model.state_dict()
