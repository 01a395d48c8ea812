from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from lissome.core.cache import Cache
from lissome.core.errors import BadModel, BadTask
from lissome.core.model import Architecture
from lissome.core.task import Split
from lissome.nn.call import call
from lissome.nn.load import finished, load_model
from lissome.train.callbacks import Callback
from lissome.train.config import FinetuneConfig, TrainConfig
from lissome.train.finetune import classification_loss, depths, finetune, layer_groups, score_of
from tests.train.small import bits, number_task, small, word_task

WORDS = word_task()
QUICK = FinetuneConfig(train=TrainConfig(epochs=1, lr=1e-3, precision="fp32"), size=20)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A Hugging Face directory with a tiny BERT and a (pretend) tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32, num_labels=2
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "vocab.txt").write_text("[PAD]\n")
    return folder


def numbers_model():
    return finished(small(), Architecture(kind="exported", target="small"), "small")


def test_learns_and_leaves_the_given_model_alone(tmp_path):
    model, task = numbers_model(), number_task()
    before = bits(model.module), score_of(model.module, task)
    tuned = finetune(model, task, FinetuneConfig(train=TrainConfig(epochs=30, lr=0.03, precision="fp32"), size=8), Cache(tmp_path))
    assert bits(model.module) == before[0]
    assert score_of(tuned.module, task) > max(0.75, before[1])
    assert not tuned.module.training
    assert tuned.fingerprint != model.fingerprint


def test_second_call_reads_the_first(tmp_path, monkeypatch):
    import lissome.train.finetune as room

    first = finetune(numbers_model(), number_task(), QUICK, Cache(tmp_path))
    monkeypatch.setattr(room, "train", None)  # would fail if called
    second = finetune(numbers_model(), number_task(), QUICK, Cache(tmp_path))
    assert first.fingerprint == second.fingerprint
    assert not (tmp_path / "training").exists() or not list((tmp_path / "training").iterdir())


@pytest.mark.parametrize("change", ["task", "config", "model"])
def test_anything_else_is_another_entry(tmp_path, change):
    finetune(numbers_model(), number_task(), QUICK, Cache(tmp_path))
    model, task, config = numbers_model(), number_task(), QUICK
    if change == "task":
        task = number_task(87)
    elif change == "config":
        config = QUICK.model_copy(update={"label_smoothing": 0.1})
    else:
        model = finished(small(1), model.architecture, "small")
    finetune(model, task, config, Cache(tmp_path))
    assert len(list((tmp_path / "finetune").iterdir())) == 2


def test_hugging_face_directory(bert, tmp_path):
    from transformers import AutoModelForSequenceClassification

    tuned = finetune(load_model(str(bert)), WORDS, QUICK, Cache(tmp_path))
    folder = tuned.directory
    assert folder.is_relative_to(tmp_path)
    assert tuned.ref == str(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "finetune.json"} <= {file.name for file in folder.iterdir()}
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "without", "1": "with"}
    again = load_model(str(folder))
    assert again.fingerprint == tuned.fingerprint
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = {name: torch.from_numpy(value) for name, value in WORDS.collate(WORDS.splits["test"].inputs[:4], "longest").items()}
    assert torch.equal(theirs(**inputs).logits, call(tuned.module, inputs))
    record = json.loads((folder / "finetune.json").read_text())
    assert record["result"]["precision"] == "fp32"
    assert record["scores"][-1]["step"] == 5
    assert FinetuneConfig.model_validate(record["config"]) == QUICK


def test_factory_model(tmp_path):
    torch.manual_seed(0)
    from lissome.nn.load import fingerprint

    model = load_model("lissome.nn.cnn:small_cnn")
    x = np.random.default_rng(0).normal(size=(12, 1, 8, 8)).astype(np.float32)
    split = Split(list(x), np.arange(12) % 10)
    task = dataclasses.replace(
        number_task(),
        splits=dict.fromkeys(("train", "calibration", "validation", "test"), split),
        collate=lambda rows, padding: {"images": np.stack(rows)},
        classes=(),
    )
    tuned = finetune(model, task, QUICK, Cache(tmp_path))
    assert tuned.architecture == model.architecture
    assert fingerprint(tuned.module) == tuned.fingerprint == load_model(tuned.ref).fingerprint != model.fingerprint


def test_a_killed_fine_tune_goes_on(tmp_path, monkeypatch):
    import lissome.train.finetune as room

    config = FinetuneConfig(train=TrainConfig(epochs=3, lr=1e-3, precision="fp32", checkpoint_every=1), size=8)
    whole = finetune(numbers_model(), number_task(), config, Cache(tmp_path / "whole"))
    real, resumed = room.train, []

    class Die(Callback):
        def on_step(self, run):
            if run.step == 6 and not resumed:
                raise RuntimeError("died")

    def dying(*args, callbacks, **rest):
        result = real(*args, callbacks=[*callbacks, Die()], **rest)
        resumed.append(result.resumed_from)
        return result

    monkeypatch.setattr(room, "train", dying)
    with pytest.raises(RuntimeError, match="died"):
        finetune(numbers_model(), number_task(), config, Cache(tmp_path / "killed"))
    assert not list((tmp_path / "killed" / "finetune").iterdir())
    resumed.append("second life")
    tuned = finetune(numbers_model(), number_task(), config, Cache(tmp_path / "killed"))
    assert resumed[-1] == 5
    assert tuned.fingerprint == whole.fingerprint


def test_freezing(bert, tmp_path):
    model = load_model(str(bert))
    tuned = finetune(model, WORDS, QUICK.model_copy(update={"freeze_layers": 1}), Cache(tmp_path))
    before, after = model.module.state_dict(), tuned.module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any("embeddings" in name or "layer.0." in name for name in moved)
    assert {"classifier.weight", "bert.pooler.dense.weight", "bert.encoder.layer.1.output.dense.weight"} <= moved
    assert all(p.requires_grad for p in model.module.parameters())
    embeddings = finetune(model, WORDS, QUICK.model_copy(update={"freeze_embeddings": True}), Cache(tmp_path)).module.state_dict()
    assert torch.equal(before["bert.embeddings.word_embeddings.weight"], embeddings["bert.embeddings.word_embeddings.weight"])
    assert not torch.equal(before["bert.encoder.layer.0.output.dense.weight"], embeddings["bert.encoder.layer.0.output.dense.weight"])


def test_freezing_everything_is_refused(bert, tmp_path):
    with pytest.raises(BadModel, match=r"would freeze all 2 blocks(.|\n)*at most 1"):
        finetune(load_model(str(bert)), WORDS, QUICK.model_copy(update={"freeze_layers": 2}), Cache(tmp_path))


def test_depths_and_rates(bert):
    module = load_model(str(bert)).module
    depth, blocks = depths(module)
    assert blocks == 2
    assert depth["bert.embeddings.LayerNorm.weight"] == 0
    assert depth["bert.encoder.layer.1.attention.self.query.bias"] == 2
    assert depth["bert.pooler.dense.weight"] == depth["classifier.bias"] == 3
    config = FinetuneConfig(train=TrainConfig(lr=1.0, weight_decay=0.1), layer_decay=0.5, head_lr=10)
    groups = layer_groups(module, config)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(rate, decay) for rate in (0.25, 0.5, 1.0, 10.0) for decay in (0.0, 0.1)]
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))


def test_depths_without_blocks():
    assert set(depths(small())[0].values()) == {1}
    assert depths(small())[1] == 0


def test_dropout_is_set_for_training_only(bert, tmp_path):
    model = load_model(str(bert))
    tuned = finetune(model, WORDS, QUICK.model_copy(update={"dropout": 0.0}), Cache(tmp_path))
    assert {layer.p for layer in tuned.module.modules() if isinstance(layer, torch.nn.Dropout)} == {0.1}
    other = finetune(model, WORDS, QUICK, Cache(tmp_path))
    assert tuned.fingerprint != other.fingerprint


def test_label_smoothing():
    module, batch = small().eval(), {"x": torch.randn(4, 8), "labels": torch.tensor([0, 1, 2, 0])}
    plain, smooth = classification_loss()(module, batch), classification_loss(0.2)(module, batch)
    spread = -module(batch["x"]).log_softmax(dim=1).mean()
    torch.testing.assert_close(smooth, 0.8 * plain + 0.2 * spread)


def test_score_is_the_tasks_own_in_the_order_of_its_examples():
    task = dataclasses.replace(WORDS, score=lambda outputs, targets: (outputs[:, 0] == targets).astype(float))

    class Oracle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, attention_mask):
            return (input_ids == 7).any(dim=1, keepdim=True).float()

    assert score_of(Oracle(), task) == 1.0


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (np.zeros(30), "labels are not class numbers"),
        (np.full(30, -1), "labels are not class numbers"),
        (np.zeros(30, dtype=np.int64), "holds a single class"),
    ],
)
def test_labels_that_cannot_be_learnt(tmp_path, targets, text):
    task = number_task()
    bad = dataclasses.replace(task, splits={**task.splits, "train": Split(task.splits["train"].inputs, targets)})
    with pytest.raises(BadTask, match=text):
        finetune(numbers_model(), bad, QUICK, Cache(tmp_path))


def test_head_too_small(bert, tmp_path):
    task = dataclasses.replace(WORDS, classes=("a", "b", "c"))
    with pytest.raises(BadModel, match=r"shape \[1, 2\] for one example, but the task has 3 classes(.|\n)*classes=3"):
        finetune(load_model(str(bert)), task, QUICK, Cache(tmp_path))


def test_a_failed_fine_tune_leaves_no_entry(tmp_path):
    task = dataclasses.replace(number_task(), collate=lambda rows, padding: {"x": np.full((len(rows), 8), np.nan, np.float32)})
    with pytest.raises(Exception, match="the loss became nan at step 1"):
        finetune(numbers_model(), task, QUICK, Cache(tmp_path))
    assert not list((tmp_path / "finetune").iterdir())
