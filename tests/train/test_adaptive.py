from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from lissome.cli.main import run as command
from lissome.core.cache import Cache
from lissome.core.errors import BadModel
from lissome.data import load_task
from lissome.nn.cnn import small_cnn
from lissome.train.adaptive import AdaptivePrecision, change_between, fake_int8
from lissome.train.batches import Batches
from lissome.train.callbacks import Callback
from lissome.train.config import AdaptiveConfig, FinetuneConfig, TrainConfig
from lissome.train.finetune import classification_loss, finetune, score_of
from lissome.train.loop import train
from tests.train.small import bits, loader, loss, number_task, small

STEPS = TrainConfig(steps=24, lr=0.01, precision="fp32", schedule="constant")


class Two(nn.Module):
    """Two layers side by side, so that the gradient of each can be chosen."""

    def __init__(self):
        super().__init__()
        self.calm, self.wild = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.calm(x) + self.wild(x)


def two() -> Two:
    torch.manual_seed(0)
    return Two()


def pulled(module: Two, batch: torch.Tensor) -> torch.Tensor:
    """The calm layer's weights are always pulled one way, the wild one's to and fro, in turns of four batches (the batch says which)."""
    return module.calm.weight.sum() + batch.mean().sign() * module.wild.weight.sum() + 0.0 * module(batch).sum()


TURNS = [torch.full((2, 8), 1.0 if i // 4 % 2 == 0 else -1.0) for i in range(24)]


def test_a_layer_that_fluctuates_moves_up_and_a_calm_one_down():
    module = two()
    watching = AdaptivePrecision(module, AdaptiveConfig(window=4, start="bf16"))
    train(module, TURNS, pulled, STEPS, callbacks=[watching])
    assert watching.levels == {"calm": "int8", "wild": "fp32"}
    assert sorted((move["layer"], move["from"], move["to"]) for move in watching.moves) == [("calm", "bf16", "int8"), ("wild", "bf16", "fp32")]
    assert watching.changes["calm"] == 0.0
    assert watching.changes["wild"] == 1.0
    assert watching.counts() == {"int8": 1, "bf16": 0, "fp32": 1}
    assert watching.sentence() == "precision by layer at the end: 1 int8, 1 fp32 of 2, after 2 moves"


def test_neither_moves_without_patience_or_beyond_the_limits():
    def levels(**settings):
        module = two()
        watching = AdaptivePrecision(module, AdaptiveConfig(window=4, **settings))
        train(module, TURNS, pulled, STEPS, callbacks=[watching])
        return watching.levels

    assert levels(patience=20) == {"calm": "bf16", "wild": "bf16"}
    assert levels(lowest="bf16") == {"calm": "bf16", "wild": "fp32"}
    assert levels(start="int8") == {"calm": "int8", "wild": "fp32"}
    assert levels(skip=("w*",)) == {"calm": "int8"}


def test_the_module_is_given_back_as_it_was():
    module = two()
    train(module, TURNS, pulled, STEPS, callbacks=[AdaptivePrecision(module)])
    assert "forward" not in vars(module.calm)
    assert not module.calm.weight._backward_hooks
    assert module.calm.weight.dtype == torch.float32


@pytest.mark.parametrize("level", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(3, 4, 3, padding=1), nn.Conv1d(3, 4, 3)])
def test_each_precision_computes_what_it_says(level, layer):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 6) if isinstance(layer, nn.Linear) else (2, 3, 8, 8) if isinstance(layer, nn.Conv2d) else (2, 3, 8), generator=generator)
    exact = layer(x).detach()
    holder = nn.Sequential(layer).train()
    watching = AdaptivePrecision(holder, AdaptiveConfig(start=level))
    watching.on_start(None)
    try:
        found = holder(x)
        assert found.dtype == torch.float32
        error = float((found - exact).abs().max() / exact.abs().max())
        low, high = {"fp32": (0, 0), "bf16": (1e-5, 0.02), "int8": (1e-5, 0.05)}[level]
        assert low <= error <= high
        found.sum().backward()
        assert torch.isfinite(layer.weight.grad).all()
        assert torch.equal(holder.eval()(x), exact), "evaluation is exact"
    finally:
        watching.detach()
        layer.weight.grad = None


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), rows=st.booleans())
def test_rounding_to_int8_equals_the_plain_one(values, rows):
    x = np.array([values, [v / 3 for v in values]], dtype=np.float32)
    found = fake_int8(torch.from_numpy(x), per_row=rows).numpy()
    for i in range(2):
        scale = max(float(np.abs(x[i] if rows else x).max()), 1e-12) / 127
        assert np.allclose(found[i], np.clip(np.round(x[i] / scale), -127, 127) * scale, rtol=1e-4, atol=scale * 1.01)
        assert np.abs(found[i] - x[i]).max() <= 0.51 * scale + 1e-6


@settings(deadline=None)
@given(seed=st.integers(0, 1000), factor=st.floats(0.01, 100))
def test_change_lies_between_0_and_1(seed, factor):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(50, generator=generator), factor * torch.randn(50, generator=generator)
    assert 0 <= change_between(a, b) <= 1 + 1e-6
    assert change_between(a, b) == pytest.approx(change_between(b, a), rel=1e-5)
    assert change_between(a, a) == 0
    assert change_between(a, -a) == pytest.approx(1)
    assert change_between(a, torch.zeros(50)) == pytest.approx(1)
    assert change_between(torch.zeros(50), torch.zeros(50)) == 0


class Stop(Callback):
    def __init__(self, step):
        self.at = step

    def on_step(self, run):
        if run.step == self.at:
            raise RuntimeError("died")


@pytest.mark.parametrize("death", [3, 10, 17])
def test_dying_and_resuming_changes_no_bit_and_no_move(tmp_path, death):
    config = TrainConfig(steps=20, lr=0.02, precision="fp32", checkpoint_every=3)
    adaptive = AdaptiveConfig(window=2, up=0.7, down=0.6)

    def once(folder, die_at):
        module = small()
        watching = AdaptivePrecision(module, adaptive)
        train(module, loader(), loss, config, callbacks=[watching, Stop(die_at)], resume=folder)
        return bits(module), watching.levels, watching.moves

    with pytest.raises(RuntimeError):
        once(tmp_path, death)
    resumed, whole = once(tmp_path, 0), once(None, 0)
    assert whole[2], "some layer moved"
    assert resumed == whole


def test_on_digits_it_learns_as_well_as_fp32():
    task = load_task("lissome.data.digits:digits_task")
    scores = []
    for adaptive in (False, True):
        torch.manual_seed(0)
        module = small_cnn(width=16)
        config = TrainConfig(epochs=5, lr=3e-3, precision="fp32")
        callbacks = [AdaptivePrecision(module, AdaptiveConfig(window=5))] if adaptive else []
        train(module, Batches(task, "train", 64), classification_loss(), config, callbacks=callbacks)
        scores.append(score_of(module, task))
    assert scores[0] > 0.94
    assert scores[1] > scores[0] - 0.03, f"{scores} on 269 images: one standard error is about a point"


def test_a_frozen_model_cannot_adapt():
    module = nn.Sequential(nn.Linear(3, 3)).requires_grad_(False)
    with pytest.raises(BadModel, match="no linear or convolution layer to adapt"):
        AdaptivePrecision(module)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"up": 0.5, "down": 0.6}, "must be below up"),
        ({"start": "int8", "lowest": "bf16"}, "is below lowest"),
        ({"window": 0}, "greater than or equal to 1"),
    ],
)
def test_configs_that_make_no_sense(values, message):
    with pytest.raises(ValidationError, match=message):
        AdaptiveConfig(**values)


def test_fine_tuning_keeps_its_history_and_the_plain_key_stays(tmp_path):
    from lissome.nn.load import as_model

    model, task = as_model(small()), number_task()
    plain = FinetuneConfig(train=TrainConfig(epochs=2, precision="fp32"), size=8)
    finetune(model, task, plain, Cache(tmp_path))
    finetune(model, task, plain.model_copy(update={"adaptive": AdaptiveConfig(window=1)}), Cache(tmp_path))
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "finetune").glob("*/finetune.json"))]
    adapted = next(record for record in records if "adaptive" in record)
    assert len(records) == 2
    assert set(adapted["adaptive"]["levels"]) == {"first", "head"}


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    arguments = ["fine-tune", "lissome.nn.cnn:small_cnn", "--task", "lissome.data.digits:digits_task", "--out", str(tmp_path / "out"), "--adaptive-precision"]
    assert command([*arguments, "--batch", "128", "--lr", "0.003", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["precision"] == "fp32"
    assert "precision by layer at the end" in " ".join(shown.err.split())
    assert len(json.loads(Path(tmp_path / "out" / "finetune.json").read_text())["adaptive"]["levels"]) == 10
