"""Scores against the plain computation, unit by unit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from lissome.compress.prune import apply, groups, importance
from lissome.core.errors import BadInput, Diverged
from lissome.nn.call import call
from tests.compress.prune import zoo
from tests.compress.prune.zoo import found


def loss(module, batch):
    return functional.cross_entropy(call(module, {name: value for name, value in batch.items() if name != "labels"}), batch["labels"])


def batches(name, count=2):
    return [
        {**{key: value + i if value.is_floating_point() else value for key, value in zoo.example(name).items()}, "labels": torch.tensor([0, i])}
        for i in range(count)
    ]


def plain(module, group, unit, value):
    """Sum of `value(weight)` over every slice that goes with a unit, one slice after another."""
    weights, total = dict(module.named_parameters()), 0.0
    for member in group.members:
        if isinstance(member.place, int) and member.owner in weights:
            for index in np.flatnonzero(member.labels == unit):
                total += float(value(weights[member.owner]).double().select(member.place, int(index)).sum())
    return total


@pytest.mark.parametrize("name", ["mixed", "bert"])
@pytest.mark.parametrize("method", ["l1", "l2", "gradient", "taylor"])
def test_equals_the_plain_computation(name, method):
    model, listed = found(name)
    data = batches(name)
    scores = importance(model, listed, method, loss=loss, batches=data)
    assert set(scores) == {group.name for group in listed}
    expected = {(group.name, unit): 0.0 for group in listed for unit in (0, group.units - 1)}
    module = copy.deepcopy(model.module)
    for batch in data if method in ("gradient", "taylor") else data[:1]:
        module.zero_grad()
        loss(module, batch).backward()
        value = {
            "l1": lambda w: w.detach().abs(),
            "l2": lambda w: w.detach() ** 2,
            "gradient": lambda w: w.grad**2 / len(data) if w.grad is not None else w.detach() * 0,
            "taylor": lambda w: (w.grad * w.detach()).abs() / len(data) if w.grad is not None else w.detach() * 0,
        }[method]
        for group, unit in expected:
            if listed[group].kind == "blocks" and method in ("gradient", "taylor"):
                without = apply(model, listed, {group: [one for one in range(listed[group].units) if one != unit]})
                with torch.no_grad():
                    expected[group, unit] += float(loss(without.module, batch) - loss(module, batch)) / len(data)
            elif listed[group].kind == "blocks":
                held = module.get_submodule(f"{group}.{listed[group].blocks[unit]}")
                expected[group, unit] += sum(float(value(weight).double().sum()) for weight in held.parameters())
            else:
                expected[group, unit] += plain(module, listed[group], unit, value)
    for (group, unit), total in expected.items():
        rooted = method == "l2" or (method == "gradient" and listed[group].kind != "blocks")
        assert float(scores[group][unit]) == pytest.approx(total**0.5 if rooted else total, rel=1e-4, abs=1e-6)


def test_activation_of_channels():
    model, listed = found("mixed")
    data = [zoo.example("mixed")]
    scores = importance(model, listed, "activation", batches=data)
    with torch.no_grad():
        x = torch.relu(model.module.norm(model.module.stem(data[0]["images"])))
        side = model.module.side(x + model.module.point(functional.relu6(model.module.depthwise(functional.relu6(model.module.deep(x))))))
    torch.testing.assert_close(scores["side"].float(), side.abs().mean((0, 2, 3)))


def test_activation_of_a_block_is_how_much_it_turns_its_input():
    model, listed = found("bert")
    data = [zoo.example("bert")]
    seen = []
    scores = importance(model, listed, "activation", batches=data)
    handles = [layer.register_forward_hook(lambda _l, args, out: seen.append((args[0], out))) for layer in model.module.bert.encoder.layer]
    with torch.no_grad():
        call(model.module, data[0])
    for handle in handles:
        handle.remove()
    expected = [1 - functional.cosine_similarity(a.flatten(1), b.flatten(1)).mean() for a, b in seen]
    torch.testing.assert_close(scores["bert.encoder.layer"].float(), torch.stack(expected))


def test_activation_takes_what_a_plain_loader_gives():
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(20, 6)
    listed = groups(module, {"x": x[:2]})
    pairs = importance(module, listed, "activation", batches=DataLoader(TensorDataset(x, torch.zeros(20, dtype=torch.long)), batch_size=5))
    named = importance(module, listed, "activation", batches=[{"x": part, "labels": torch.zeros(5)} for part in x.split(5)])
    assert torch.equal(pairs["0"], named["0"])
    torch.testing.assert_close(pairs["0"].float(), module[0](x).abs().mean(0))


def test_leaves_no_gradient_behind():
    model, listed = found("bert")
    importance(model, listed, "taylor", loss=loss, batches=batches("bert"))
    assert all(p.grad is None for p in model.module.parameters())


class TestBadInput:
    def refusal(self, method="taylor", kind=BadInput, **given):
        with pytest.raises(kind) as error:
            importance(*found("cnn"), method, **given)
        return str(error.value)

    def test_no_loss(self):
        assert 'the importance "taylor" is measured on data: it needs a loss and batches.' in self.refusal(batches=[])

    def test_no_batches(self):
        assert 'use importance "l2"' in self.refusal("activation")
        assert "it needs batches" in self.refusal("gradient", loss=loss)

    def test_a_batch_of_something_else(self):
        told = self.refusal("activation", batches=["text"])
        assert "cannot tell inputs and labels apart in a batch of str." in told
        assert "a tuple (inputs..., labels), or one tensor" in told

    def test_empty(self):
        assert "there are no batches to measure importance on." in self.refusal(loss=loss, batches=[])
        assert "there are no batches to measure importance on." in self.refusal("activation", batches=iter([]))

    def test_a_loss_that_is_no_number(self):
        assert "did not return one number" in self.refusal(loss=lambda module, batch: call(module, batch), batches=[zoo.example("cnn")])
        assert "did not return one number" in self.refusal(loss=lambda module, batch: 1.0, batches=[zoo.example("cnn")])

    def test_nan(self):
        broken = [{"images": torch.full((2, 1, 12, 12), float("nan"))}]
        text = self.refusal(kind=Diverged, loss=lambda module, batch: call(module, batch).mean(), batches=broken)
        assert "look for NaN in the data" in text
