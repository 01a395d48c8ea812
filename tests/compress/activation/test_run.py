"""The pass from a folder into a folder, and every reason said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from lissome.cli.main import run as command
from lissome.compress import activation
from lissome.compress.activation import (
    ActivationConfig,
    multiplications,
    read_record,
    run,
    sparsify_activations,
    sparsify_activations_to,
    thresholds_for,
    zeros,
)
from lissome.compress.activation.run import Silenced
from lissome.core.cache import Cache
from lissome.core.errors import BadArtifact, BadModel, BadTask
from lissome.core.task import Split, Task, correct
from lissome.nn.call import call
from lissome.nn.ffn import ActivationPlan, feed_forwards, use
from lissome.nn.load import as_model, load_model
from lissome.train.config import TrainConfig
from tests.nn import tiny

HERE = "tests.compress.activation.test_run"
QUICK = ActivationConfig(keep=0.8, size=50, examples=8)
TAUGHT = TrainConfig(steps=6, lr=1e-3, precision="fp32")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")


def collate(rows, padding="longest"):
    return {"input_ids": np.stack(rows), "attention_mask": np.ones((len(rows), len(rows[0])), np.int64)}


@torch.no_grad()
def answers_of(module, rows):
    return call(module, {key: torch.from_numpy(value) for key, value in collate(rows).items()}).argmax(-1).numpy()


def own_answers(n: int = 100) -> Task:
    """Random tokens whose labels are the dense model's own answers."""
    module, rng, splits = tiny.bert(), np.random.default_rng(0), {}
    for name, count in {"train": 40, "calibration": 10, "validation": n, "test": n}.items():
        rows = [rng.integers(0, tiny.VOCABULARY, 16) for _ in range(count)]
        splits[name] = Split(rows, answers_of(module, rows))
    return Task("answers", "text-classification", splits, collate, correct, f"answers-{n}", f"answers:{n}", classes=("a", "b"))


def small() -> Task:
    return own_answers(10)


@pytest.mark.parametrize(("risk", "what"), [("lost", "quality"), ("drop", "mean score")])
def test_zeros_that_keep_the_answers_are_found(tmp_path, risk, what):
    config = QUICK.model_copy(update={"risk": risk})
    found = sparsify_activations_to(tmp_path / "out", str(tiny.bert_folder(tmp_path / "model")), f"{HERE}:own_answers", config)
    assert found.status == "met" and found.zeros > 5 and not found.trained and found.sentence.startswith(f"MET   {what} kept >= 80 % (95 %)")
    assert [step.certified for step in found.steps].count(False) <= 1 and found.steps[0].share == 0
    share = 1 - found.zeros / 100
    assert found.multiplications == pytest.approx((1 + share) / 2)
    assert read_record(tmp_path / "out") == found
    written = load_model(str(tmp_path / "out")).module
    assert written.config.lissome_activation["thresholds"] == list(found.plan.thresholds)
    for part, one in zip(feed_forwards(written), found.layers, strict=True):
        assert getattr(part.module, part.act).threshold == one.threshold and one.zeros.n == 8 and one.zeros.low <= one.zeros.value <= one.zeros.high


def test_zeros_are_measured_on_examples_that_thresholds_were_not_set_on():
    task = own_answers()
    made, found = sparsify_activations(as_model(tiny.bert()), task, QUICK.model_copy(update={"examples": 100}))
    rows = [{name: torch.from_numpy(value) for name, value in collate([row]).items()} for row in task.splits["validation"].inputs]
    expected = zeros(made.module, rows, found.plan.thresholds)
    assert [one.zeros.n for one in found.layers] == [100, 100]
    assert [one.mean for one in found.layers] == pytest.approx([one.mean for one in expected])


def test_the_original_is_left_as_it_was():
    model = as_model(tiny.bert())
    acts = [getattr(part.module, part.act) for part in feed_forwards(model.module)]
    sparsify_activations(model, own_answers(), QUICK)
    assert [getattr(part.module, part.act) for part in feed_forwards(model.module)] == acts and not hasattr(model.module.config, "lissome_activation")


@pytest.mark.parametrize(("risk", "keep"), [("lost", 0.5), ("drop", 0.3)])
def test_training_goes_for_its_share(cache, monkeypatch, risk, keep):
    monkeypatch.setattr(run, "SHARES", (0.0,))  # relu as it is: all the other zeros have to be learned
    config = QUICK.model_copy(update={"activation": "relu", "adapt": True, "share": 0.8, "penalty": 0.1, "train": TAUGHT, "keep": keep, "risk": risk})
    made, found = sparsify_activations(as_model(tiny.bert()), own_answers(), config, cache)
    assert {step.trained for step in found.steps} == {False, True}
    assert found.trained and found.status == "met" and found.zeros > 60
    assert made.module.config.lissome_activation["activation"] == "relu"
    again = sparsify_activations(as_model(tiny.bert()), own_answers(), config, cache)[1]
    assert [(step.share, step.kept) for step in again.steps] == [(step.share, step.kept) for step in found.steps]


def test_a_layer_that_says_nothing_is_named(monkeypatch):
    module = tiny.bert()
    with torch.no_grad():
        first = feed_forwards(module)[0].module
        first.dense.weight.zero_()
        first.dense.bias.fill_(-1.0)  # gelu(-1) everywhere: any threshold that takes some takes all
        module.bert.encoder.layer[0].output.dense.weight.zero_()  # so that nothing is lost with it
    said = []
    from lissome.core.progress import Silent

    monkeypatch.setattr(Silent, "say", lambda _, text: said.append(text))
    task = own_answers()
    with torch.no_grad():
        splits = {
            name: Split(s.inputs, call(module, {k: torch.from_numpy(v) for k, v in collate(s.inputs).items()}).argmax(-1).numpy())
            for name, s in task.splits.items()
        }
    found = sparsify_activations(as_model(module), dataclasses.replace(task, splits=splits, fingerprint="other"), QUICK)[1]
    assert found.status == "met" and found.silent == (0,)
    assert "layer 0 says nothing at all with its threshold: its feed-forward part adds nothing." in said


def test_thresholds_leave_what_they_are_set_for():
    module = use(tiny.bert(), ActivationPlan())
    batches = [{name: torch.from_numpy(value) for name, value in tiny.texts(1, 20, seed).items()} for seed in range(8)]
    none, half, most = thresholds_for(module, batches, (0.0, 0.5, 0.9))
    assert none == (0.0, 0.0) and all(0 < low < high for low, high in zip(half, most, strict=True))
    layers = zeros(use(module, ActivationPlan(thresholds=half)), batches, half)
    assert 45 < layers[0].zeros.value < 55
    assert multiplications(module, layers) == pytest.approx(0.5 + 0.25 * sum(1 - one.mean / 100 for one in layers))
    skewed = [dataclasses.replace(one, mean=20.0) for one in layers]  # the median says nothing of what the whole costs
    assert multiplications(module, skewed) == pytest.approx(0.9)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj, self.act_fn, self.down_proj = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.up_proj(x)))


def test_thresholds_are_set_by_all_neurons():
    """Neurons of very different size, small and large in turn."""
    scale = torch.logspace(-3, 3, 1024).view(2, 512).T.flatten()
    x = torch.randn(1, 128, 1024, generator=torch.Generator().manual_seed(0)) * scale
    shares = (0.1, 0.5, 0.9)
    for share, (threshold,) in zip(shares, thresholds_for(Part(), [{"x": x}], shares), strict=True):
        assert float((x.abs() <= threshold).double().mean()) == pytest.approx(share, abs=0.01)


def test_nan_in_a_layer_is_named():
    module = use(tiny.bert(), ActivationPlan())
    with torch.no_grad():
        feed_forwards(module)[0].module.dense.bias[0] = float("nan")
    with pytest.raises(BadModel, match="the activations of feed-forward part 0 hold NaN"):
        thresholds_for(module, [{name: torch.from_numpy(value) for name, value in tiny.texts(1, 20).items()}], (0.5,))


@pytest.mark.parametrize(
    ("make", "task", "config", "kind", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 2)), own_answers, QUICK, BadModel, "Sequential is no transformers model"),
        (lambda: use(tiny.bert(), ActivationPlan()), own_answers, QUICK, BadModel, "has a plan for its activations already"),
        (tiny.bert, small, QUICK, BadTask, "the validation split has 10 examples, too few"),
        (tiny.bert, own_answers, QUICK.model_copy(update={"on": "product"}), BadModel, "feed-forward parts without a gate"),
    ],
)
def test_what_cannot_be_done_is_said(make, task, config, kind, message):
    with pytest.raises(kind, match=message):
        sparsify_activations(as_model(make()), task(), config)


def test_a_record_that_is_none(tmp_path):
    with pytest.raises(BadArtifact, match="lissome sparsify-activations"):
        read_record(tmp_path)


def test_the_verb(tmp_path, capsys):
    model = str(tiny.bert_folder(tmp_path / "model"))
    given = [
        "sparsify-activations",
        model,
        "--task",
        f"{HERE}:own_answers",
        "--out",
        str(tmp_path / "out"),
        "--keep",
        "80%",
        "--examples",
        "8",
        "--batch",
        "20",
    ]
    assert command(given) == 0
    told = capsys.readouterr().out
    assert "layer" in told and "MET   quality kept >= 80 %" in told and "multiplications" in told
    assert command([*given[:4], "--out", str(tmp_path / "other"), "--keep", "2"]) == 2
    assert command([*given[:4], "--out", str(tmp_path / "other"), "--on", "product", "--train"]) == 2
    assert command([*given[:4], "--out", str(tmp_path / "other"), "--risk", "all"]) == 2


@pytest.mark.parametrize(("status", "code"), [("met", 0), ("not met", 3), ("dense", 3)])
def test_the_exit_code_says_whether_it_was_kept(status, code, tmp_path, monkeypatch):
    found = Silenced(str(tmp_path), status, "What came of it.", 0.99, ActivationPlan(), False, (), 1.0, (), None, None, ())
    monkeypatch.setattr(activation, "sparsify_activations_to", lambda *_, **__: found)
    assert command(["sparsify-activations", "model", "--task", f"{HERE}:own_answers", "--out", str(tmp_path)]) == code
