"""Learned scorers as candidates: fitted on the train split before anything is measured, in use from the profile to the verdict, written with the model."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json

import pytest
import torch
from safetensors.torch import load_file

from lissome.cli.main import run as command
from lissome.compress.attention import SparsifyConfig, sparsify, sparsify_to
from lissome.compress.attention import fitted as fitting
from lissome.compress.attention import run as running
from lissome.compress.attention.fitted import fitted
from lissome.compress.attention.replace import sparse_self, with_plan
from lissome.core.cache import Cache
from lissome.core.errors import BadConfig, BadTask
from lissome.core.measurement import Measurement
from lissome.core.progress import Silent
from lissome.machine.identity import identify
from lissome.nn.attention.in_transformers import use
from lissome.nn.attention.learned import FILE
from lissome.nn.call import call
from lissome.nn.load import as_model, load_model, save_model
from lissome.train import loop
from lissome.train.config import TrainConfig
from tests.compress.attention import worlds
from tests.nn import tiny
from tests.nn.attention.test_in_transformers import ids
from tests.nn.attention.test_in_transformers import llama as language_model
from tests.nn.attention.test_learned import BOTH, stirred

HERE = "tests.compress.attention.worlds"
BLOCKS = "window(64) | top_blocks(1, indexer)"
SUNK = "window(64) | sink(4) | top_blocks(1, indexer)"
TOKENS = "window(64) | top_tokens(8, learned_importance)"
QUICK = SparsifyConfig(keep=0.9, size=16, fit_steps=8, candidates=(BLOCKS,))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    said = Measurement("speedup", 2.0, 1.9, 2.1, "x", 9, "measured", identify().fingerprint)
    monkeypatch.setattr(running, "times_faster", lambda *_: said)
    return Cache(tmp_path / "cache")


def llama():
    """Attention to everything that is not quite even, so that blocks differ and choices matter."""
    module = worlds.llama(near=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in module.model.layers:
            layer.self_attn.q_proj.bias.normal_(0, 0.3)
            layer.self_attn.k_proj.weight.normal_(0, 0.1)
    return module


def fit(module, task, config, cache):
    """The folder of the scorers, and the sparse self that holds them."""
    model, batch = as_model(module), worlds.collate(worlds.texts(1, 0))
    twin = sparse_self(model, {name: torch.from_numpy(value) for name, value in batch.items()})
    return fitted(model, twin, task, config, cache, Silent()), twin


def assert_equal(folder, other):
    """The same scorers, bit for bit."""
    before, after = load_file(folder / FILE), load_file(other / FILE)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def answers(module):
    return call(module, {name: torch.from_numpy(array) for name, array in worlds.collate(worlds.texts(3, 11)).items()})


class TestPass:
    def test_an_indexer_goes_through_the_verb_and_comes_back_with_the_folder(self, tmp_path, capsys):
        llama().save_pretrained(tmp_path / "model")
        begin = ["sparsify", str(tmp_path / "model"), "--task", f"{HERE}:leaning_task", "--out", str(tmp_path / "out"), "--keep", "90%", "--json"]
        assert command([*begin, "--candidate", BLOCKS, "--fit-steps", "8"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["status"], document["plan"], document["layers"][0]["heads"]["chosen"]) == ("met", [BLOCKS] * 2, 4)
        again = load_model(document["folder"])
        assert again.fingerprint == document["fingerprint"], "the scorers are part of it"
        made, _ = sparsify(as_model(llama()), worlds.leaning_task(), QUICK)
        assert torch.equal(answers(again.module), answers(made.module))
        assert not torch.equal(answers(again.module), answers(use(llama(), [BLOCKS] * 2))), "fresh ones choose otherwise"
        assert command([*begin, "--candidate", "window(64)"]) == 0
        assert not (tmp_path / "out" / FILE).exists(), "of a plan that is gone"

    def test_training_leaves_the_scorers_as_they_were_fitted(self, tmp_path):
        llama().save_pretrained(tmp_path / "model")
        config = QUICK.model_copy(update={"adapt": True, "candidates": (SUNK,), "train": TrainConfig(epochs=3, lr=0.02, precision="fp32")})
        found = sparsify_to(tmp_path / "out", str(tmp_path / "model"), f"{HERE}:leaning_task", config)
        assert (found.status, found.trained, found.plan[0]) == ("met", True, SUNK)
        assert "indexer" in found.plan[1]
        (folder,) = (tmp_path / "cache" / "scorers").iterdir()
        assert_equal(folder, tmp_path / "out")
        made, again = sparsify(as_model(llama()), worlds.leaning_task(), config)[0], load_model(found.folder)
        assert made.fingerprint == again.fingerprint == found.fingerprint
        assert torch.equal(answers(made.module), answers(again.module))
        assert not torch.equal(made.module.score.weight, llama().score.weight), "the model itself was trained"

    def test_tokens_beside_blocks_are_planned_so_that_they_run(self, cache):
        config = QUICK.model_copy(update={"candidates": (TOKENS, SUNK, "top-k"), "keep": 0.3})
        made, found = sparsify(as_model(llama()), worlds.leaning_task(), config, cache)
        assert found.table.candidates == (TOKENS, SUNK, "window(64) | top_share(0.25)", "everything()"), "written out"
        assert found.status == "met"
        assert torch.isfinite(answers(made.module)).all(), "no layer mixes global tokens with other patterns"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("window(64) | top_blocks(1, indexr)", r'knows no scorer "indexr".*Did you mean "indexer"(?s:.*)pooled_keys, leading_query, .*indexer'),
            ("window(64) | top_tokens(8, importance)", 'knows no scorer "importance"(?s:.*)feature_entropy, learned_importance'),
        ],
    )
    def test_a_bad_name_says_what_there_is(self, cache, text, said):
        with pytest.raises(BadConfig, match=said):
            sparsify(as_model(llama()), worlds.leaning_task(), QUICK.model_copy(update={"candidates": (text,)}), cache)


class TestFit:
    def test_the_train_split_alone_is_read_and_one_is_needed(self, cache):
        splits = worlds.leaning_task().splits
        task = dataclasses.replace(worlds.leaning_task(), splits={"train": splits["train"]})
        folder, twin = fit(llama(), task, QUICK, cache)
        assert sorted(load_file(folder / FILE))[0] == "model.layers.0.self_attn.indexer.bias"
        assert twin.model.layers[1].self_attn.indexer is not None
        rest = dataclasses.replace(task, splits={name: split for name, split in splits.items() if name != "train"}, fingerprint="rest")
        with pytest.raises(BadTask, match='the split "train" is empty'):
            fit(llama(), rest, QUICK, cache)

    def test_a_killed_fit_goes_on_and_a_finished_one_is_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(TrainConfig, "due", lambda self, seconds, steps: steps >= 2)
        task, real, steps = worlds.leaning_task(), loop._step, []

        def dying(*arguments):
            real(*arguments)
            steps.append(1)
            if len(steps) == 5:
                raise RuntimeError("killed")

        monkeypatch.setattr(loop, "_step", dying)
        with pytest.raises(RuntimeError, match="killed"):
            fit(llama(), task, QUICK, Cache(tmp_path / "killed"))
        killed, _ = fit(llama(), task, QUICK, Cache(tmp_path / "killed"))
        assert len(steps) == 5 + 4, "from the checkpoint after the fourth of eight"
        whole, _ = fit(llama(), task, QUICK, Cache(tmp_path / "whole"))
        assert_equal(killed, whole)
        monkeypatch.setattr(fitting, "FITS", {})
        assert fit(llama(), task, QUICK.model_copy(update={"candidates": ("window(64)", BLOCKS)}), Cache(tmp_path / "whole"))[0] == whole
        assert not list((tmp_path / "whole" / "training").glob("*")), "checkpoints go when all is done"

    def test_what_makes_other_scorers_is_another_fit(self, cache):
        changes = ({}, {"train": TrainConfig(epochs=1, lr=5e-5, seed=3)}, {"candidates": (BLOCKS, SUNK)})
        found = [fit(llama(), worlds.leaning_task(), QUICK.model_copy(update={"fit_steps": 1, **more}), cache)[0] for more in changes]
        weights = [load_file(folder / FILE)["model.layers.0.self_attn.indexer.query"] for folder in found]
        assert not any(torch.equal(one, other) for one, other in itertools.combinations(weights, 2))
        assert fit(llama(), worlds.leaning_task(), QUICK.model_copy(update={"candidates": ("window(64)",)}), cache)[0] is None


@pytest.mark.parametrize("make", [llama, lambda: tiny.bert(max_position_embeddings=300)])
def test_a_model_holds_the_scorers_that_its_plan_names(make, cache):
    module = make()
    folder, twin = fit(module, worlds.leaning_task(), QUICK.model_copy(update={"candidates": (BLOCKS, TOKENS), "fit_steps": 1}), cache)
    model, found = as_model(module), []
    for plan in ((BLOCKS, None), (f"{SUNK} | top_tokens(8, learned_importance)", "window(64)"), (BLOCKS, None)):
        made = with_plan(model, twin, plan, folder)
        other = with_plan(model, copy.deepcopy(module), plan, folder)
        assert made.fingerprint == other.fingerprint, "whatever plan it had before"
        torch.testing.assert_close(answers(made.module), answers(other.module))
        found.append({name.rsplit(".", 2)[-2] for name in made.module.state_dict() if "indexer" in name or "importance" in name})
        assert not any(".1." in name for name in made.module.state_dict() if "indexer" in name or "importance" in name)
    assert found == [{"indexer"}, {"indexer", "importance"}, {"indexer"}]


@torch.no_grad()
def test_a_written_decoder_says_the_same_words(tmp_path):
    model = as_model(stirred(use(language_model(), [BOTH, "window(9)"])))
    save_model(model, tmp_path)
    again = load_model(str(tmp_path))
    assert again.fingerprint == model.fingerprint
    said = [one.module.generate(ids(150), max_new_tokens=6, do_sample=False) for one in (model, again)]
    assert torch.equal(*said)
