import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lissome.core.errors import BadConfig, BadModel
from lissome.kernels.decoder.native import Decoder, Pool
from lissome.kernels.decoder.reference import Reference
from lissome.kernels.library import library
from lissome.nn.decoder.modules import from_llama
from lissome.nn.ffn import ActivationPlan, Thresholded, Tightening, activated, feed_forwards, use, watching
from lissome.nn.ffn.activation import magnitude
from lissome.nn.load import as_model, load_model, save_model
from tests.nn.decoder.small import llama
from tests.nn.tiny import bert

TOKENS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def test_the_gradient_is_that_of_the_kept():
    layer, x = Thresholded(activated("relu2"), 0.01), torch.randn(5, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("make", [llama, bert])
@pytest.mark.parametrize("plan", [ActivationPlan(), ActivationPlan(activation="relu"), ActivationPlan(thresholds=(0.1, 0.4))])
def test_a_plan_is_saved_with_the_model(make, plan, tmp_path):
    model = make()
    before = logits(model)
    used = use(model, plan)
    assert torch.equal(logits(used), before) == (plan == ActivationPlan())
    save_model(as_model(used), tmp_path)
    assert torch.equal(logits(load_model(str(tmp_path)).module), logits(used))


def test_a_later_plan_undoes_the_earlier():
    model = llama()
    before = logits(model)
    for on in ("gate", "product"):
        use(model, ActivationPlan(activation="relu", on=on, thresholds=(0.2, 0.2)))
        assert not torch.equal(logits(model), before)
        assert torch.equal(logits(use(copy.deepcopy(model), ActivationPlan())), before)


def test_values_are_seen_after_the_threshold():
    model, seen = use(llama(), ActivationPlan(activation="relu", thresholds=(0.0, 0.5))), {}
    with watching(model, lambda at, values: seen.update({at: values})):
        logits(model)
    assert seen[1].shape == (2, 12, 96) and bool((seen[1] == 0).any()) and float(seen[1][seen[1] != 0].min()) > 0.5


@pytest.mark.skipif(library().handle is None, reason=f"no native kernels: {library().trouble}")
@pytest.mark.parametrize("on", ["gate", "product"])
@pytest.mark.parametrize("activation", ["same", "relu"])
def test_the_decoder_kernel_computes_the_plan(on, activation):
    model = use(llama(), ActivationPlan(activation=activation, on=on, thresholds=(0.3, 0.0)))
    weights = from_llama(model)
    assert weights.layers[0].ffn.kind == ("gate-first" if on == "gate" else "product")
    assert (weights.layers[1].ffn.kind == "gated") == (activation == "same")
    step = [TOKENS[0], torch.zeros(12), torch.arange(12), torch.arange(12)]
    for decoder in (Decoder(weights, 1, 16, Pool(1), half=False), Reference(weights, 1, 16, half=False)):
        np.testing.assert_allclose(decoder.step(*step), logits(model)[0], rtol=1e-3, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.integers(1, 200))
def test_a_magnitude_leaves_the_share_below(share, n):
    x = torch.randn(n)
    below = float((x.abs() <= magnitude(x, share)).double().mean())
    assert below >= share - 1e-6 if share else below <= 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_magnitude_sees_all_neurons(share):
    """Neurons of very different size, small and large in turn, more numbers than a sample has."""
    scale = torch.logspace(-3, 3, 1024).view(2, 512).T.flatten()
    x = torch.randn(128, 1024, generator=torch.Generator().manual_seed(0)) * scale
    assert float((x.abs() <= magnitude(x, share)).double().mean()) == pytest.approx(share, abs=0.01)


def test_tightening_reaches_its_share_and_then_stays():
    layer = Tightening(torch.relu, 0.9, steps=10).train()
    for _ in range(60):
        found = layer(torch.randn(50, 40, requires_grad=True))
    assert 0.86 < float((found == 0).float().mean()) < 0.94 and 0.8 < float(layer.penalty) < 1.2
    before = float(layer.threshold)
    layer.eval()(torch.randn(5, 5) * 100)
    assert float(layer.threshold) == before


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Thresholded(torch.relu, -1.0), BadConfig, "a threshold of -1.0 is no size"),
        (lambda: Thresholded(torch.relu, float("nan")), BadConfig, "a threshold of nan is no size"),
        (lambda: activated("tanh"), BadConfig, 'the activation "tanh" is not offered'),
        (lambda: ActivationPlan(thresholds=(0.1, float("nan"))), ValueError, "layer 1 has a threshold of nan"),
        (lambda: use(llama(), ActivationPlan(thresholds=(0.1,))), BadConfig, "1 thresholds for 2 feed-forward parts"),
        (lambda: use(bert(), ActivationPlan(on="product")), BadModel, "feed-forward parts without a gate"),
        (lambda: feed_forwards(nn.Sequential(nn.Linear(2, 2))), BadModel, "Sequential has no feed-forward part that is known here"),
    ],
)
def test_what_makes_no_sense_is_named(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_a_broken_plan_in_a_folder_is_named(tmp_path):
    model = use(bert(), ActivationPlan(thresholds=(0.1, 0.1)))
    save_model(as_model(model), tmp_path)
    path = tmp_path / "config.json"
    told = json.loads(path.read_text())
    told["lissome_activation"]["thresholds"] = [0.1, -0.1]
    path.write_text(json.dumps(told))
    with pytest.raises(BadModel, match=r"lissome_activation is no plan for it: .*layer 1 has a threshold of -0\.1"):
        load_model(str(tmp_path))
