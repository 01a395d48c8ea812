from __future__ import annotations

import copy
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lissome.compress.batches import forward
from lissome.compress.qat import SCALE_LR, qat
from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QuantizeConfig
from lissome.compress.quantize.simulate import simulate
from lissome.core.cache import Cache
from lissome.core.errors import BadConfig, BadInput, Diverged
from lissome.core.quantization import Quantization, Scales
from lissome.engines.table import Load, load
from lissome.export.forms import Recipe, build_form
from lissome.export.parity import relative_error
from lissome.nn.load import as_model
from lissome.train.config import TrainConfig
from tests.compress.killed_qat import everything
from tests.compress.killed_qat import run as killed_run
from tests.export.recipes import SATURATES
from tests.nn import tiny
from tests.train.small import loader, loss, small

torch.set_num_threads(1)


def simulated(quantized):
    return simulate(quantized.model.module, quantized.quantization, quantized.scales).eval()


@pytest.fixture(scope="module")
def four_bits():
    """A trained classifier, quantised to four bits with one scale a row, which hurts."""
    model = as_model(small())
    from lissome.train.loop import train

    train(model.module, loader(), loss, TrainConfig(epochs=20, lr=0.02, precision="fp32"))
    model = as_model(model.module)
    config = QuantizeConfig(precision="w4a16", group=None, smallest=1)
    return model, quantize(model, config, loader(shuffle=False))


def total_loss(module):
    module.eval()
    with torch.no_grad():
        return float(sum(loss(module, batch) for batch in loader(shuffle=False)))


def test_training_takes_back_what_rounding_cost(four_bits):
    model, start = four_bits
    before, scales = copy.deepcopy(start.model.module.state_dict()), start.scales.arrays()
    trained = qat(model, start, loss, loader(), TrainConfig(epochs=20, lr=5e-3, warmup=0))
    assert total_loss(simulated(trained)) < total_loss(simulated(start))
    assert trained.quantization == start.quantization, "every layer keeps its precision"
    now = trained.scales.arrays()
    assert now.keys() == scales.keys()
    assert all(not np.array_equal(now[name], scales[name]) for name in scales), "the scales were trained"
    assert all(torch.equal(before[name], value) for name, value in start.model.module.state_dict().items()), "what was given is left alone"
    assert all(np.array_equal(scales[name], value) for name, value in start.scales.arrays().items())
    assert trained.model.module.state_dict().keys() == model.module.state_dict().keys()


def test_scales_stay_where_their_rate_is_zero(four_bits):
    model, start = four_bits
    trained = qat(model, start, loss, loader(), TrainConfig(steps=3), scale_lr=0)
    expected = start.scales.arrays()
    assert all(np.array_equal(expected[name], value) for name, value in trained.scales.arrays().items())


def test_what_was_trained_is_what_is_deployed(tmp_path):
    """A CNN with batch norms, int8 throughout: trained weights, scales and offsets reach the engine."""
    model, batches = as_model(tiny.cnn()), [(torch.from_numpy(tiny.images(8, i)["images"]), torch.arange(8) % 4) for i in range(4)]
    start = quantize(model, QuantizeConfig(smallest=1, reduce_range=SATURATES), batches)
    trained = qat(model, start, lambda m, b: functional.cross_entropy(m(b[0]), b[1]), batches, TrainConfig(steps=8, lr=1e-3), scale_lr=0.01)
    assert trained.fingerprint != start.fingerprint
    norm, before = trained.model.module.stem[1], start.model.module.stem[1]
    assert torch.equal(norm.running_var, before.running_var) and torch.equal(norm.weight, before.weight), "norms keep their statistics"
    assert not torch.equal(norm.bias, before.bias)
    form = build_form(Recipe(model, tiny.images(2), [], ""), "onnxruntime", "mixed", Cache(tmp_path), quantized=trained)
    batch = tiny.images(5, 77)
    with torch.no_grad():
        expected = forward(simulated(trained), batch).numpy()
    assert relative_error(expected, load("onnxruntime", form, Load("mixed", 1)).run(batch)) < 0.02
    assert trained.scales.layers["blocks.0.conv2"].output != start.scales.layers["blocks.0.conv2"].output


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-static"])
def test_kill_9_twice_then_resume_gives_the_same_bits(tmp_path, precision):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, str(Path(__file__).parent / "killed_qat.py"), str(tmp_path / "run"), precision]
    found = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert found.stdout.split() == [str(-signal.SIGKILL.value)] * 2 + [killed_run(None, 0, precision), "0"], found.stderr


def test_the_same_twice(four_bits):
    runs = [qat(*four_bits, loss, loader(), TrainConfig(steps=4)) for _ in range(2)]
    assert everything(runs[0]) == everything(runs[1])


def test_auto_is_exact(four_bits, monkeypatch):
    import lissome.train.loop as room

    monkeypatch.setattr(room, "choose_precision", lambda *_: pytest.fail("asked"))
    qat(*four_bits, loss, loader(), TrainConfig(steps=1, precision="auto"))


def test_what_does_not_belong_together(four_bits):
    model, start = four_bits
    with pytest.raises(BadInput, match=r"made from another model: weight is not in it there and \(3, 8\) here"):
        qat(as_model(nn.Linear(8, 3)), start, loss, loader())
    bare = dataclasses.replace(start, quantization=Quantization(), scales=Scales())
    with pytest.raises(BadInput, match="no layer is quantised"):
        qat(model, bare, loss, loader())


def test_nan_comes_out_as_an_error(four_bits):
    model, start = four_bits
    before = copy.deepcopy(start.model.module.state_dict())
    with pytest.raises(Diverged, match="the loss became nan"):
        qat(model, start, lambda m, b: loss(m, b) * float("nan"), loader(), TrainConfig(steps=3))
    assert all(torch.equal(before[name], value) for name, value in start.model.module.state_dict().items())


def test_batches_that_only_the_loss_can_read(four_bits):
    model, start = four_bits
    strange = [{"picture": x, "caption": y, "weights": [1.0]} for x, y in loader(shuffle=False)]
    triples = [(x, torch.rand(len(x)), y) for x, y in loader(shuffle=False)]
    found = [
        qat(model, start, lambda m, b: functional.cross_entropy(m(b["picture"]), b["caption"]), strange, TrainConfig(steps=2)),
        qat(model, start, lambda m, b: (b[1] * functional.cross_entropy(m(b[0]), b[2], reduction="none")).mean(), triples, TrainConfig(steps=2)),
        qat(model, start, loss, list(loader(shuffle=False)), TrainConfig(steps=2)),
    ]
    assert everything(found[0]) == everything(found[2]) != everything(found[1])


def test_a_trained_model_that_gives_nan_is_not_handed_back(four_bits):
    """The last step broke what training's own loss had not met yet."""
    model, start = four_bits
    with pytest.raises(Diverged, match=r"the trained model gives NaN or infinite outputs(.|\n)*lower lr"):
        qat(model, start, lambda m, b: loss(m, b) * (1 if m.training else float("inf")), loader(), TrainConfig(steps=2))


def test_checkpoints_belong_to_what_was_quantised_and_to_the_scales_rate(four_bits, tmp_path):
    """All have the same shapes; only what they start from differs."""
    model, start = four_bits
    moved = copy.deepcopy(model.module)
    with torch.no_grad():
        moved.head.weight += 0.1
    moved = as_model(moved)
    other = quantize(moved, QuantizeConfig(precision="w4a16", group=None, smallest=1))
    first = qat(model, start, loss, loader(), TrainConfig(steps=2), resume=tmp_path)
    assert everything(qat(model, start, loss, loader(), TrainConfig(steps=2), resume=tmp_path)) == everything(first)
    for given, rate in (((moved, other), SCALE_LR), ((model, start), 0.01)):
        with pytest.raises(BadConfig, match="the checkpoint belongs to"):
            qat(*given, loss, loader(), TrainConfig(steps=2), scale_lr=rate, resume=tmp_path)
