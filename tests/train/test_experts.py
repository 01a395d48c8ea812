import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lissome.core.cache import Cache
from lissome.nn.moe.balance import balancing_loss, layers_of, rebalance
from lissome.nn.moe.config import MoEConfig
from lissome.nn.moe.layer import MoE
from lissome.nn.moe.router import switch_loss
from lissome.train.config import FinetuneConfig, TrainConfig
from lissome.train.experts import Balance, balanced
from lissome.train.finetune import finetune
from lissome.train.loop import train
from tests.train.test_finetune_language import TASK, llama


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
    mean = load.float().mean()
    assert_close(layer.router.bias, 0.005 * ((mean - load) / mean).clamp(-1, 1))
    assert not layer.load.any()
    assert not layer.router.bias.requires_grad and "0.router.bias" in model.state_dict()


def test_biases_rest_where_the_load_is_even():
    model = skewed("bias").train()
    bias = model[0].router.bias
    model[0].load += torch.tensor([0, 5, 10, 11, 9, 10, 10, 25])
    rebalance(model)
    assert_close(bias, 0.005 * torch.tensor([1, 0.5, 0, -0.1, 0.1, 0, 0, -1]), rtol=0, atol=1e-8)
    before = bias.clone()
    model[0].load += 7
    rebalance(model)
    assert torch.equal(bias, before)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_balancing_goes_on_in_half_precision(kind):
    """A count past 2048 and a step of the rate are both too fine for half precision."""
    model = skewed("bias").train().to(kind)
    layer = model[0]
    assert layer.load.dtype == torch.int64 and layer.router.bias.dtype == torch.float32 and layer.router.weight.dtype == kind
    layer.router.bias += 8
    load = 2000 * torch.arange(8) + 1001
    for _ in range(40):
        layer.load += load
        rebalance(model)
    assert_close(layer.router.bias, 8 + 0.2 * (1 - load / 8001), rtol=0, atol=1e-4)
    kept = layer.router.bias.clone()
    assert torch.equal(model.float()[0].router.bias, kept) and torch.equal(model.half()[0].router.bias, kept)


def test_a_layer_may_be_made_without_memory():
    with torch.device("meta"):
        layer = MoE(8, MoEConfig(experts=4, active=2, neurons=8))
    made = layer.half().to_empty(device="cpu")
    assert made.router.bias.dtype == torch.float32 and made.router.weight.dtype == torch.float16


def test_fine_tuning_keeps_a_split_model_even(tmp_path, monkeypatch):
    """The biases move in `finetune` itself, and are in what it writes; a model without experts has neither callback nor another key in the cache."""
    from lissome.compress.experts import SplitConfig, split_experts

    seen = []
    monkeypatch.setattr(Balance, "on_end", lambda self, run: seen.append(len(self.loads)))
    model, config = llama(), FinetuneConfig(train=TrainConfig(steps=6, lr=1e-2, precision="fp32"), size=20)
    batch = {"input_ids": torch.randint(16, (8, 16), generator=torch.Generator().manual_seed(0))}
    made, _ = split_experts(model, [batch], SplitConfig(experts=4, active=1))
    trained = finetune(made, TASK, config, Cache(tmp_path))
    (layer,) = layers_of(trained.module)
    assert seen == [6] and layer.router.bias.abs().sum() > 0 and layer.config.experts == 4
    finetune(model, TASK, config, Cache(tmp_path))
    assert seen == [6]
