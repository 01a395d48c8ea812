"""Pruning in one call and from the command line, and what can be done with the result."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from lissome.cli.main import run
from lissome.compress.prune import PruneConfig, apply, choose, groups, importance, prune, prune_to
from lissome.core.cache import Cache
from lissome.core.errors import BadInput, BadModel
from lissome.engines.table import Load
from lissome.engines.table import load as load_engine
from lissome.engines.torch_eager import load_module
from lissome.export.forms import Recipe, build_form
from lissome.nn.call import call
from lissome.nn.load import as_model, load_model, save_model
from lissome.train.config import FinetuneConfig, TrainConfig
from lissome.train.finetune import finetune
from tests.compress.prune import zoo
from tests.train.small import word_task

TASK = "tests.train.small:word_task"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT for the word task."""
    path = tmp_path_factory.mktemp("models") / "bert"
    zoo.transformer("bert", num_labels=2).save_pretrained(path)
    return path


def output(model, name):
    with torch.no_grad():
        return call(model.module, zoo.example(name))


class TestOneCall:
    def test_by_weights_alone(self):
        model = zoo.found("cnn")[0]
        smaller = prune(model, PruneConfig(ratio=0.5, round_to=1), zoo.example("cnn"))
        assert smaller.module.stem[0].out_channels == 4
        assert [block.conv1.out_channels for block in smaller.module.blocks] == [4, 8, 16]

    def test_a_module_of_ones_own(self):
        torch.manual_seed(0)
        module, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).train(), torch.randn(4, 6)
        smaller = prune(module, PruneConfig(ratio=0.5, round_to=1), {"x": x})
        assert smaller.module[0].out_features == 8
        assert module.training
        assert module[0].out_features == 16, "the module given is left as it was"
        listed = groups(module, {"x": x})
        by_hand = apply(module, listed, choose(listed, importance(module, listed, "l2"), PruneConfig(ratio=0.5, round_to=1)))
        assert by_hand.fingerprint == smaller.fingerprint

    def test_arrays_and_labels_are_an_example_too(self):
        model = zoo.found("bert")[0]
        example = {**{name: value.numpy() for name, value in zoo.example("bert").items()}}
        smaller = prune(model, PruneConfig(ratio=0.5, round_to=1, kinds=("heads",), drop_blocks=1), example)
        assert [layer.attention.self.num_attention_heads for layer in smaller.module.bert.encoder.layer] == [2, 2]

    def test_a_plain_loop_of_ones_own(self):
        from torch.utils.data import DataLoader, TensorDataset

        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        with torch.no_grad():
            module[0].weight[:8], module[0].bias[:8] = 0, 0  # half of the neurons are dead
        loader = DataLoader(TensorDataset(torch.randn(20, 6), torch.randint(0, 2, (20,))), batch_size=5)
        loss = lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1])  # noqa: E731
        config = PruneConfig(ratio=0.5, importance="taylor", round_to=1)
        smaller = prune(as_model(module), config, {"x": torch.randn(2, 6)}, loss=loss, batches=loader)
        x = torch.randn(4, 6)
        torch.testing.assert_close(smaller.module(x), module(x))

    def test_nothing_to_prune(self):
        with pytest.raises(BadModel, match=r"nothing in this model can be pruned\. 0: it is the model's output"):
            prune(as_model(nn.Sequential(nn.Linear(3, 2))), PruneConfig(), {"x": torch.randn(2, 3)})


class TestVerb:
    def test_writes_a_folder_that_loads(self, folder, tmp_path):
        done = prune_to(tmp_path / "out", str(folder), TASK, PruneConfig(ratio=0.5, importance="taylor", drop_blocks=1, round_to=8), batches=2)
        assert done.parameters[1] < done.parameters[0]
        assert {(cut.kind, cut.before, cut.after) for cut in done.groups} >= {("neurons", 64, 32), ("heads", 4, 2), ("blocks", 3, 2), ("channels", 32, 32)}
        again = load_model(done.folder)
        assert again.fingerprint == done.fingerprint
        record = json.loads((tmp_path / "out" / "prune.json").read_text())
        assert len(record["keep"]["bert.encoder.layer"]) == 2
        assert record["config"]["importance"] == "taylor"
        assert (
            prune_to(tmp_path / "out", str(folder), TASK, PruneConfig(ratio=0.25), batches=1).parameters[1] > done.parameters[1]
        )  # its own folder may be replaced

    def test_command_line(self, folder, tmp_path, capsys):
        begin = ["prune", str(folder), "--task", TASK, "--out", str(tmp_path / "out"), "--ratio", "0.5", "--round-to", "8"]
        assert run(begin) == 0
        told = capsys.readouterr().out
        assert re.search(r"bert\.encoder\.layer\.0\.intermediate\.dense +neurons +64 +32", told)
        assert "Left alone, as it is the width of an attention head" in told
        assert "not trained since" in told
        assert run([*begin, "--importance", "l2", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["groups"][0]["name"] == "bert.embeddings.word_embeddings"

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["--importance", "magic"], "--importance: Input should be 'gradient', 'taylor', 'l1', 'l2' or 'activation'"),
            (["--ratio", "1"], "--ratio: Input should be less than 1"),
            (["--round-to", "0"], "--round-to: Input should be greater than or equal to 1"),
            (["--drop-blocks", "3"], "3 blocks cannot be dropped."),
            (["--ratio", "0.1", "--round-to", "64"], "a ratio of 0.1 cuts nothing: rounded up to multiples of 64, all widths are the whole ones again."),
        ],
    )
    def test_bad_options(self, folder, tmp_path, capsys, options, expected):
        assert run(["prune", str(folder), "--task", TASK, "--out", str(tmp_path / "out"), *options]) == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_folder_of_something_else(self, folder, tmp_path):
        (tmp_path / "thesis.tex").write_text("")
        with pytest.raises(BadInput, match="the output folder exists and holds something else"):
            prune_to(tmp_path, str(folder), TASK)


class TestAfterwards:
    def pruned(self, name):
        return prune(zoo.found(name)[0], PruneConfig(ratio=0.5, round_to=1), zoo.example(name))

    def recipe(self, model, name):
        example = {key: value.numpy() for key, value in zoo.example(name, 3).items()}
        return Recipe(model, example, [], "", variable_length=name in ("bert", "llama"))

    @pytest.mark.parametrize("name", ["cnn", pytest.param("llama", marks=pytest.mark.slow)])
    def test_the_torch_engine_builds_it(self, name, tmp_path):
        model = self.pruned(name)
        module, names = load_module(build_form(self.recipe(model, name), "torch", "fp32", Cache(tmp_path)))
        with torch.no_grad():
            assert torch.equal(module(*(zoo.example(name)[one] for one in names)), output(model, name))

    @pytest.mark.parametrize(
        "name", ["cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixed", "norms", "gpt2", "bert", "distilbert", "llama", "vit", "resnet"))]
    )
    def test_onnx_runtime_agrees(self, name, tmp_path):
        model = self.pruned(name)
        session = load_engine("onnxruntime", build_form(self.recipe(model, name), "onnxruntime", "fp32", Cache(tmp_path)), Load("fp32", 1, None, False))
        found = session.run({key: value.numpy() for key, value in zoo.example(name).items()})
        np.testing.assert_allclose(found, output(model, name).numpy(), rtol=1e-3, atol=1e-4)

    def test_it_learns_and_is_pruned_again(self, folder, tmp_path):
        task = word_task()
        smaller = prune(load_model(str(folder)), PruneConfig(ratio=0.5, round_to=1, drop_blocks=1), zoo.example("bert"))
        save_model(smaller, tmp_path / "smaller")
        config = FinetuneConfig(train=TrainConfig(steps=2, precision="fp32"), size=8)
        tuned = finetune(load_model(str(tmp_path / "smaller")), task, config, Cache(tmp_path / "cache"))
        assert tuned.architecture.resize == smaller.architecture.resize
        assert tuned.fingerprint != smaller.fingerprint
        assert list(tuned.module.config.id2label.values()) == ["without", "with"]
        again = prune(tuned, PruneConfig(keep={"bert.encoder.layer.0.intermediate.dense": 8}), zoo.example("bert"))
        assert [layer.intermediate.dense.out_features for layer in again.module.bert.encoder.layer] == [8, 32]

    def test_a_head_of_another_size_is_refused(self, tmp_path):
        save_model(self.pruned("bert"), tmp_path)
        with pytest.raises(BadModel, match="a pruned or split model keeps the head it has"):
            load_model(str(tmp_path), classes=5)

    def test_a_plan_that_was_changed_is_refused(self, tmp_path):
        save_model(self.pruned("bert"), tmp_path)
        path = tmp_path / "architecture.json"
        path.write_text(path.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": 200'))
        with pytest.raises(BadModel, match="pruning only makes it smaller"):
            load_model(str(tmp_path))
        shapes = json.loads(path.read_text())
        shapes["resize"]["attributes"], name = {}, "bert.encoder.layer.0.intermediate.dense.weight"
        shapes["resize"]["shapes"][name][0] -= 1
        path.write_text(json.dumps(shapes))
        with pytest.raises(BadModel, match="the weights do not fit BertForSequenceClassification"):
            load_model(str(tmp_path))


@pytest.mark.slow
def test_resnet50_loses_two_thirds_of_its_weights(tmp_path):
    import transformers

    torch.manual_seed(0)
    model = as_model(transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=10)).eval(), "resnet-50")
    example = {"pixel_values": torch.randn(2, 3, 32, 32)}
    assert groups(model, example).parameters == 23_528_522
    smaller = prune(model, PruneConfig(ratio=0.45, round_to=8), example)
    assert sum(p.numel() for p in smaller.module.parameters()) < 8_700_000
    save_model(smaller, tmp_path)
    with torch.no_grad():
        assert torch.equal(call(load_model(str(tmp_path)).module, example), call(smaller.module, example))
