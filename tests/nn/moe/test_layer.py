import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.testing import assert_close

from lissome.core.errors import BadTensor
from lissome.nn.fingerprint import fingerprint
from lissome.nn.moe import reference
from lissome.nn.moe.config import MoEConfig
from lissome.nn.moe.dispatch import dispatch
from lissome.nn.moe.layer import MoE
from lissome.nn.moe.router import choose


@st.composite
def layers(draw) -> tuple[MoE, torch.Tensor]:
    """A layer in float64 and tokens for it, none among the counts."""
    experts = draw(st.integers(1, 9))
    config = MoEConfig(
        experts=experts,
        active=draw(st.integers(1, experts)),
        neurons=draw(st.integers(1, 7)),
        shared=draw(st.sampled_from([0, 3])),
        activation=draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu", "relu2"])),
        gated=draw(st.booleans()),
        biases=draw(st.booleans()),
        scores=draw(st.sampled_from(["softmax", "sigmoid"])),
        weights=draw(st.sampled_from(["normalised", "scores", "ones"])),
        scale=draw(st.sampled_from([1.0, 2.5])),
    )
    torch.manual_seed(draw(st.integers(0, 1000)))
    layer = MoE(6, config).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    torch.nn.init.normal_(layer.router.bias)
    return layer, torch.randn(draw(st.integers(0, 12)), 6, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(layers())
def test_sorted_equals_token_by_token(case):
    layer, x = case
    assert_close(layer(x), reference.moe(layer, x))


@settings(max_examples=25, deadline=None)
@given(layers())
def test_gradients_equal_token_by_token(case):
    layer, x = case
    x = x.requires_grad_()
    kept = [x, *layer.parameters()]
    for found, expected in zip(
        torch.autograd.grad(layer(x).square().sum(), kept, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(reference.moe(layer, x).square().sum(), kept, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        assert_close(found, expected)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("gated", [True, False])
def test_gradcheck(scores, gated):
    torch.manual_seed(3)
    layer = MoE(4, MoEConfig(experts=4, active=2, neurons=3, shared=2, scores=scores, gated=gated, biases=True)).double()
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


def test_the_same_twice_to_the_bit():
    torch.manual_seed(0)
    layer = MoE(16, MoEConfig(experts=8, active=3, neurons=8))
    x = torch.randn(64, 16, requires_grad=True)
    runs = []
    for _ in range(2):
        out = layer(x)
        runs.append((out, *torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_token_is_routed_alike_in_every_company():
    torch.manual_seed(0)
    layer = MoE(16, MoEConfig(experts=8, active=2, neurons=8))
    torch.nn.init.zeros_(layer.router.weight)  # ties everywhere
    x = torch.randn(2, 10, 16)
    whole = layer(x)
    changed = torch.cat([x[:, :6], torch.randn(2, 4, 16)], 1)
    assert_close(layer(changed)[:, :6], whole[:, :6], rtol=1e-6, atol=1e-6)
    assert layer.router(x.view(-1, 16)).index.unique().tolist() == [0, 1]
    alone = torch.cat([layer(token[None]) for token in x.view(-1, 16)])
    assert_close(alone, whole.view(-1, 16), rtol=1e-6, atol=1e-6)


def test_router_stays_in_float32():
    layer = MoE(8, MoEConfig(experts=4, active=2, neurons=4)).bfloat16()
    x = torch.randn(5, 8).bfloat16()
    routing = layer.router(x)
    assert routing.weight.dtype == routing.scores.dtype == torch.float32
    assert layer(x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert MoE(8, MoEConfig(experts=4, active=2, neurons=4)).router(x.float()).scores.dtype == torch.float32


def test_no_token_is_dropped_when_all_want_one_expert():
    layer = MoE(4, MoEConfig(experts=4, active=1, neurons=3, weights="ones")).double()
    layer.router.bias[2] = 10
    x = torch.randn(50, 4, dtype=torch.float64)
    assert layer.router(x).index.eq(2).all()
    assert_close(layer(x), reference.moe(layer, x))


def test_ones_train_the_router():
    layer = MoE(4, MoEConfig(experts=4, active=2, neurons=3, weights="ones"))
    x = torch.randn(9, 4)
    assert torch.equal(layer.router(x).weight, torch.ones(9, 2))
    layer(x).sum().backward()
    assert layer.router.weight.grad.abs().sum() > 0


def test_bias_chooses_and_does_not_weigh():
    config = MoEConfig(experts=3, active=1, neurons=1, weights="scores")
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    routing = choose(logits, torch.tensor([0.0, 0.0, 5.0]), config)
    assert routing.index.item() == 2
    assert_close(routing.weight[0], logits.softmax(-1)[0, 2:])


def test_nan_logits_are_refused():
    layer = MoE(4, MoEConfig(experts=4, active=2, neurons=3))
    x = torch.randn(5, 4)
    x[3] = float("nan")
    with pytest.raises(BadTensor, match=r"router's logits hold NaN or infinity for 1 of 5 tokens"):
        layer(x)


def test_more_active_than_experts_is_refused():
    with pytest.raises(ValidationError, match="5 active experts of 4: a token cannot take more experts than there are"):
        MoEConfig(experts=4, active=5, neurons=3)


def test_choices_must_fit_the_tokens():
    with pytest.raises(BadTensor, match=r"Expected: \[n, width\]"):
        dispatch(torch.zeros(3, 2), torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1), 4, lambda _, rows: rows)


def test_a_choice_of_nobody_adds_nothing():
    out = dispatch(torch.ones(2, 3), torch.tensor([[0, 4], [4, 4]]), torch.ones(2, 2), 4, lambda _, rows: rows * 2)
    assert out.tolist() == [[2, 2, 2], [0, 0, 0]]


@pytest.mark.parametrize("change", [{"active": 3}, {"scale": 1.5}, {"scores": "sigmoid"}, {"weights": "ones"}, {"activation": "gelu"}])
def test_settings_that_weights_do_not_show_are_in_the_fingerprint(change):
    torch.manual_seed(0)
    one = MoE(8, MoEConfig(experts=4, active=2, neurons=4))
    other = MoE(8, MoEConfig(**{"experts": 4, "active": 2, "neurons": 4, **change}))
    other.load_state_dict(one.state_dict())
    x = torch.randn(5, 8)
    assert not torch.equal(one(x), other(x)) and fingerprint(one) != fingerprint(other)
    again = MoE(8, one.config)
    again.load_state_dict(one.state_dict())
    assert fingerprint(again) == fingerprint(one)
