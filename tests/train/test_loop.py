from __future__ import annotations

import builtins
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lissome.core.errors import BadConfig, BadInput, BadModel, Diverged, MissingExtra
from lissome.core.progress import Silent
from lissome.train.callbacks import Callback, KeepBest
from lissome.train.checkpoint import latest
from lissome.train.config import TrainConfig
from lissome.train.loop import decayed, train
from tests.train.small import bits, data, loader, loss, small

FP32 = TrainConfig(epochs=2, lr=0.02, precision="fp32")


def trained(config=FP32, batches=None, module=None, **more):
    module = module or small()
    result = train(module, loader() if batches is None else batches, loss, config, **more)
    return module, result


def test_a_plain_loader_and_a_loss_are_enough():
    module = small(dropout=0.0)
    before = loss(module.eval(), data()).item()
    result = train(module, loader(), loss, TrainConfig(epochs=20, lr=0.02, precision="fp32"))
    assert not module.training
    assert loss(module, data()).item() < 0.2 * before
    assert result.steps == 160 == result.history[-1]["step"]
    assert (result.stopped, result.resumed_from) == ("", None)
    assert result.history[0]["loss"] > result.history[-1]["loss"]
    assert all(parameter.grad is None for parameter in module.parameters())


def test_same_seed_same_bits_another_seed_other_bits():
    assert bits(trained()[0]) == bits(trained()[0])
    assert bits(trained()[0]) != bits(trained(FP32.model_copy(update={"seed": 1}))[0])


def test_a_plain_loader_is_shuffled_anew_each_epoch_and_alike_each_run():
    def orders():
        seen = []

        def noting(module, batch):
            seen.append(batch[0][:, 0].tolist())
            return loss(module, batch)

        train(small(), loader(), noting, FP32)
        return seen[:8], seen[8:]

    first, second = orders()
    assert first != second
    assert sorted(x for batch in first for x in batch) == sorted(x for batch in second for x in batch)
    assert orders() == (first, second)


def test_what_was_drawn_before_does_not_matter_and_what_comes_after_is_undisturbed():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    module = nn.Linear(8, 3)
    nn.init.zeros_(module.weight), nn.init.zeros_(module.bias)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    train(module, loader(), loss, FP32)
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected


class Plain(nn.Module):
    """No normalisation over the batch and no dropout: then accumulation is exact."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def plain():
    torch.manual_seed(0)
    return Plain()


@pytest.mark.parametrize("parts", [(4, 4, 4, 4), (7, 1, 5, 3)])
def test_accumulation_equals_one_big_batch(parts):
    x, y = data(16)
    pieces = list(zip(x.split(parts), y.split(parts), strict=True))
    config = TrainConfig(epochs=5, lr=0.1, optimizer="sgd", precision="fp32", grad_clip=0.5)
    whole, accumulated = plain(), plain()
    train(whole, [(x, y)], loss, config)
    result = train(accumulated, pieces, loss, config.model_copy(update={"accumulation": 4}))
    assert result.steps == 5
    for a, b in zip(whole.parameters(), accumulated.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_accumulation_counts_tokens_that_have_a_target():
    x, y = data(12)
    y[:5] = -100

    def masked(module, batch):
        return functional.cross_entropy(module(batch["x"]), batch["labels"], ignore_index=-100)

    config = TrainConfig(epochs=3, lr=0.1, optimizer="sgd", precision="fp32")
    whole, accumulated = plain(), plain()
    train(whole, [{"x": x, "labels": y}], masked, config)
    train(accumulated, [{"x": x[at], "labels": y[at]} for at in (slice(0, 6), slice(6, 12))], masked, config.model_copy(update={"accumulation": 2}))
    for a, b in zip(whole.parameters(), accumulated.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_short_last_group_is_a_step_of_its_own():
    assert trained(TrainConfig(epochs=2, accumulation=3, precision="fp32"))[1].steps == 2 * 3  # 8 batches: 3 + 3 + 2


@pytest.mark.parametrize(("length", "steps"), [({"epochs": 0.5}, 4), ({"steps": 11}, 11), ({}, 8), ({"epochs": 0.01}, 1)])
def test_lengths(length, steps):
    assert trained(TrainConfig(precision="fp32", **length))[1].steps == steps


def test_agrees_with_a_loop_written_by_hand():
    x, y = data(16)
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    ours, hand = plain(), plain()
    train(
        ours, batches, loss, TrainConfig(epochs=5, lr=0.1, optimizer="sgd", weight_decay=0.0, schedule="constant", warmup=0, grad_clip=None, precision="fp32")
    )
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1)
    for _ in range(5):
        for batch in batches:
            optimizer.zero_grad()
            loss(hand, batch).backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("schedule", "last"), [("linear", 0.1), ("cosine", 0.0245), ("constant", 1.0)])
def test_schedules(schedule, last):
    rates = [row["lr"] for row in trained(TrainConfig(steps=12, lr=1.0, schedule=schedule, warmup=1 / 6, optimizer="sgd", precision="fp32"))[1].history]
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[-1] == pytest.approx(last, abs=1e-3)


def test_vectors_do_not_decay():
    groups = decayed(small(), 0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert [len(group["params"]) for group in groups] == [2, 4]


def test_frozen_parameters_are_unchanged():
    module = small()
    module.first.requires_grad_(False)
    before = module.first.weight.clone(), module.head.weight.clone()
    trained(module=module)
    assert torch.equal(module.first.weight, before[0])
    assert not torch.equal(module.head.weight, before[1])
    assert not module.first.weight.requires_grad


def test_all_frozen():
    with pytest.raises(BadModel, match="no parameter to train"):
        trained(module=small().requires_grad_(False))


def test_bf16_trains_in_bf16_with_float32_weights():
    seen = set()

    def noting(module, batch):
        logits = module(batch[0])
        seen.add(logits.dtype)
        return functional.cross_entropy(logits.float(), batch[1])

    module = small(dropout=0.0)
    before = loss(module.eval(), data()).item()
    result = train(module, loader(), noting, TrainConfig(epochs=20, lr=0.02, precision="bf16"))
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert loss(module, data()).item() < 0.3 * before
    assert (result.precision, result.why) == ("bf16", "as configured")


@pytest.mark.parametrize("batches", [[], lambda: torch.utils.data.DataLoader([])])
def test_empty_loader(batches):
    with pytest.raises(BadConfig, match=r"the loader is empty, or does not know its length(.|\n)*steps"):
        trained(batches=batches() if callable(batches) else batches)


class Stream:
    """A loader that does not know its length."""

    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(list(loader(shuffle=False))[: self.n])


def test_a_stream_of_unknown_length_needs_steps():
    epochs = []

    class Note(Callback):
        def on_epoch(self, run):
            epochs.append((run.step, run.epoch))

    assert trained(TrainConfig(steps=7, precision="fp32"), Stream(3), callbacks=[Note()])[1].steps == 7
    assert epochs == [(3, 0), (6, 1)]
    with pytest.raises(BadConfig, match="set `steps` instead of `epochs`"):
        trained(batches=Stream(3))
    with pytest.raises(BadInput, match="gave no batches in epoch 0"):
        trained(TrainConfig(steps=3, precision="fp32"), Stream(0))


def test_nan_loss_says_step_and_rate_and_puts_good_weights_back(tmp_path):
    x, y = data(8)
    bad = [(x, y)] * 5 + [(x * float("nan"), y)] + [(x, y)] * 4
    module = plain()
    with pytest.raises(
        Diverged, match=r"the loss became nan at step 6 of 10, at a learning rate of 0.05(.|\n)*step-00000004 were put back(.|\n)*lower lr \(try 0.02\)"
    ) as caught:
        train(module, bad, loss, TrainConfig(lr=0.05, schedule="constant", warmup=0, precision="fp32", checkpoint_every=2), resume=tmp_path)
    assert caught.value.exit_code == 2
    path, tree = latest(tmp_path)
    assert path.name == "step-00000004"
    assert torch.equal(module.first.weight, tree["module"]["first.weight"])
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_nan_loss_without_checkpoints_keeps_the_weights_before_the_step():
    x, y = data(8)
    module, good = plain(), plain()
    config = TrainConfig(steps=3, precision="fp32")
    with pytest.raises(Diverged, match="holds the weights before that step"):
        train(module, [(x, y), (x, y), (x * float("inf"), y)], loss, config)

    class Stop(Callback):
        def on_step(self, run):
            if run.step == 2:
                run.stop("enough")

    assert train(good, [(x, y)] * 3, loss, config, callbacks=[Stop()]).stopped == "enough"
    assert bits(module) == bits(good)


def test_infinite_gradient_with_a_finite_loss():
    def steep(module, batch):
        return torch.sqrt(functional.relu(module(batch[0])).sum() * 0.0)  # 0, with the slope inf * 0

    with pytest.raises(Diverged, match="the gradient's norm became nan at step 1"):
        train(plain(), [data(8)], steep, TrainConfig(precision="fp32", grad_clip=None))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda module, batch: functional.cross_entropy(module(batch[0]), batch[1], reduction="none"), r"shape \[8\](.|\n)*mean over the batch"),
        (lambda module, batch: 3.0, "returned float"),
        (lambda module, batch: loss(module, batch).detach(), "does not depend on any parameter"),
    ],
)
def test_losses_that_cannot_be_trained(wrong, text):
    with pytest.raises(BadInput, match=text):
        train(small(), loader(), wrong, FP32)


def test_bad_optimizer_options():
    with pytest.raises(BadConfig, match=r"adamw refuses its options(.|\n)*momentum"):
        trained(FP32.model_copy(update={"optimizer_options": {"momentum": 0.9}}))


def test_own_parameter_groups():
    module = small()
    before = module.first.weight.clone()
    trained(module=module, groups=lambda m: [{"params": [m.first.weight], "lr": 0.0, "weight_decay": 0.0}, {"params": list(m.head.parameters())}])
    assert torch.equal(module.first.weight, before)


def test_missing_accelerate_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "accelerate":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"lissome\[train\]") as caught:
        trained()
    assert caught.value.exit_code == 4


def test_progress_counts_every_step():
    class Count(Silent):
        steps, total = 0, None

        def stage(self, text, total=None):
            self.total = total

        def step(self, n=1, note=""):
            self.steps += n

    progress = Count()
    trained(progress=progress)
    assert progress.steps == progress.total == 16


def test_hooks_in_order():
    calls = []

    class Note(Callback):
        def on_start(self, run):
            calls.append("start")

        def on_step(self, run):
            calls.append(run.step)

        def on_epoch(self, run):
            calls.append(f"epoch {run.epoch}")

        def on_end(self, run):
            calls.append("end")

    trained(TrainConfig(epochs=2, accumulation=4, precision="fp32"), callbacks=[Note()])
    assert calls == ["start", 1, 2, "epoch 0", 3, 4, "epoch 1", "end"]


def test_keep_best_after_spend_leaves_the_best_weights():
    seen = []

    def evaluate(module):
        seen.append(bits(module))
        return float(-len(seen))  # the first is the best

    module, result = trained(TrainConfig(steps=50, precision="fp32"), callbacks=[KeepBest(evaluate, every=1, patience=4)])
    assert result.stopped.startswith("no progress in 4")
    assert len(seen) == 5
    assert bits(module) == seen[0]
