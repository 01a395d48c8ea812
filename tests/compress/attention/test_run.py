"""The pass from a folder into a folder: a window where one suffices, dense where none does, and every reason said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lissome.cli.main import run as command
from lissome.compress.attention import Sparsified, SparsifyConfig, read_record, sparsify, sparsify_to
from lissome.compress.attention import run as running
from lissome.compress.attention.adapt import adapted
from lissome.compress.attention.plan import plan_for
from lissome.compress.attention.replace import sharing, sparse_self
from lissome.compress.quality import boldest, check_enough, lost, needed
from lissome.core.cache import Cache
from lissome.core.errors import BadArtifact, BadConfig, BadModel, BadTask
from lissome.core.measurement import Measurement
from lissome.machine.identity import identify
from lissome.nn.attention import in_transformers
from lissome.nn.attention.in_transformers import FIELD, use
from lissome.nn.call import call
from lissome.nn.load import as_model, load_model
from lissome.train.config import TrainConfig
from tests.compress.attention import worlds
from tests.nn import tiny

HERE = "tests.compress.attention.worlds"
QUICK = SparsifyConfig(keep=0.9, size=20)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")


@pytest.fixture
def faster(monkeypatch):
    """The clock says that sparse is faster."""
    return timed(monkeypatch, 2.0)


def timed(monkeypatch, factor):
    said = Measurement("speedup", factor, 0.95 * factor, 1.05 * factor, "x", 9, "measured", identify().fingerprint)
    monkeypatch.setattr(running, "times_faster", lambda *_: said)
    return said


def inputs(n=3):
    return {name: torch.from_numpy(array) for name, array in worlds.collate(worlds.texts(n, 11)).items()}


class TestNear:
    def test_a_window_suffices(self, tmp_path, faster):
        found = sparsify_to(tmp_path / "out", worlds.folder(tmp_path / "model", near=True), f"{HERE}:near_task", QUICK)
        assert (found.status, found.plan, found.trained) == ("met", ("window(64) | sink(4)",) * 2, False)
        assert found.sentence.startswith("MET   quality kept >= 90 % (95 %): measured 100.00, lower bound 92.78 %, n = 40 test examples, seen once")
        assert found.scores == (1.0, 1.0)
        assert found.kept is not None
        assert found.kept.value == found.kept.high == 100
        assert [step.certified for step in found.steps] == [True, True]
        assert found.layers[0].heads == {"dense": 0, "windows": 4, "chosen": 0}
        assert found.layers[0].share == pytest.approx(1 - 3 * 2 / 30, abs=0.1)

        assert json.loads((tmp_path / "out" / "config.json").read_text())[FIELD] == list(found.plan)
        again = load_model(found.folder)
        assert again.fingerprint == found.fingerprint
        assert again.module.config._attn_implementation == "lissome"
        with torch.no_grad():
            expected = call(use(worlds.llama(near=True), list(found.plan)), inputs())
            assert torch.equal(call(again.module, inputs()), expected)
            torch.testing.assert_close(call(worlds.llama(near=True), inputs()), expected, atol=2e-3, rtol=0)  # scores of 100 blur the sixth digit

        assert read_record(tmp_path / "out") == found
        record = json.loads((tmp_path / "out" / "sparsify.json").read_text())
        assert record["config"]["keep"] == 0.9
        assert record["task"] == worlds.near_task().fingerprint

    def test_never_slower(self, tmp_path, monkeypatch):
        timed(monkeypatch, 0.8)
        found = sparsify_to(tmp_path / "out", worlds.folder(tmp_path / "model", near=True), f"{HERE}:near_task", QUICK)
        assert (found.status, found.plan, found.kept) == ("dense", (None, None), None)
        assert "Stays dense: the certified plan visits 87 % of the pairs and is not faster here: 0.800 [0.760, 0.840] x at" in found.sentence
        again = load_model(found.folder)
        assert getattr(again.module.config, FIELD, None) is None
        assert again.fingerprint == load_model(str(tmp_path / "model")).fingerprint

    def test_the_real_clock(self, cache):
        _, found = sparsify(as_model(worlds.llama(near=True)), worlds.near_task(), QUICK.model_copy(update={"seconds": 0.2}), cache)
        assert found.speed is not None
        assert found.speed.method == "measured"
        assert len(found.lengths) == 2

    def test_another_plan_clears_a_higher_bar(self, cache, faster):
        model, task = as_model(worlds.llama(near=True)), worlds.near_task()
        sparsify(model, task, QUICK, cache)
        _, found = sparsify(model, task, QUICK.model_copy(update={"candidates": ("window(80)",)}), cache)
        assert "seen 2 times" in found.sentence
        assert "(97.5 %)" in found.sentence

    def test_heads_of_one_layer_differ(self, cache, faster):
        model = worlds.llama(near=True)
        with torch.no_grad():  # the last two heads of the first layer attend evenly
            model.model.layers[0].self_attn.q_proj.bias.view(4, 8)[2:] = 0
        config = QUICK.model_copy(update={"candidates": ("window(64) | sink(4)", "window(64) | sink(4) | top_blocks(1)")})
        made, found = sparsify(as_model(model), worlds.near_task(), config, cache)
        near = "window(64) | sink(4)"
        plan = plan_for(found.table, 0.99)
        assert plan == (f"per_head({near}, {near}, everything(), everything())", near)
        chosen = plan_for(found.table, 0.7)[0]
        assert chosen == f"per_head({near}, {near}, {near} | top_blocks(1), {near} | top_blocks(1))"
        assert found.status == "met"
        assert found.steps[1].certified
        with torch.no_grad():
            torch.testing.assert_close(call(made.module, inputs()), call(use(sharing(model), list(found.plan)), inputs()))


class TestFar:
    def test_stays_dense_and_says_so(self, tmp_path):
        found = sparsify_to(tmp_path / "out", worlds.folder(tmp_path / "model", near=False), f"{HERE}:far_task", QUICK)
        assert (found.status, found.plan, found.tau) == ("dense", (None, None), 1.0)
        assert "Stays dense: the mildest plan visits 98 % of the pairs; with it the model kept 87.50 % of its quality on 40 validation" in found.sentence
        assert [step.certified for step in found.steps] == [True, False], "bolder ones are not looked at"
        again = load_model(found.folder)
        with torch.no_grad():
            assert torch.equal(call(again.module, inputs()), call(worlds.llama(near=False), inputs()))

    def test_texts_that_fit_one_block(self, cache):
        short = worlds.near_task()
        cut = {name: type(split)([row[:40] for row in split.inputs], split.targets) for name, split in short.splits.items()}
        model = as_model(worlds.llama(near=True))
        _, found = sparsify(model, type(short)(**{**vars(short), "splits": cut, "fingerprint": "cut"}), QUICK, cache)
        assert "no candidate visits fewer pairs than dense attention at these lengths (at most 40 tokens)" in found.sentence

    def test_training_brings_it_back(self, tmp_path, cache, faster):
        task, model = worlds.leaning_task(), as_model(worlds.llama(near=False))
        config = QUICK.model_copy(update={"adapt": True, "train": TrainConfig(epochs=3, lr=0.02, precision="fp32")})
        made, found = sparsify(model, task, config, cache)
        before, after = found.steps[-2:]
        assert (before.tau, before.trained, after.trained) == (after.tau, False, True)
        assert after.kept > before.kept
        assert (found.status, found.trained) == ("met", True)
        assert made.fingerprint != model.fingerprint
        again = adapted(model, found.plan, task, config, cache, running.Silent())
        assert again.fingerprint == made.fingerprint, "read from the cache"


@pytest.mark.parametrize("make", [lambda: tiny.bert(max_position_embeddings=300), lambda: worlds.llama(near=False)])
def test_without_a_pattern_outputs_are_the_dense_models(make):
    model, batch = as_model(make()), inputs()
    twin = sparse_self(model, {name: value[:1] for name, value in batch.items()})
    with torch.no_grad():
        torch.testing.assert_close(call(twin, batch), call(model.module, batch), atol=1e-5, rtol=1e-5)
    assert getattr(model.module.config, FIELD, None) is None, "the model given is left as it was"
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(twin.parameters(), model.module.parameters(), strict=True)), "one set of weights"


def test_a_language_model_keeps_its_likelihood(cache, faster):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8}
    model = as_model(LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=300)).eval())
    _, found = sparsify(model, worlds.language_task(), SparsifyConfig(keep=0.9), cache)
    assert found.status == "met"
    assert found.kept is not None
    assert 90 <= found.kept.low <= found.kept.value <= 100
    assert set(found.plan) == {"window(64) | sink(4)"}, "random weights hardly look at the past"


class TestWhatIsRefused:
    def test_no_transformers_model(self):
        with pytest.raises(BadModel, match="CNN is no transformers model, so its attention cannot be given patterns"):
            sparsify(as_model(tiny.cnn()), worlds.near_task(), QUICK)

    def test_attention_that_cannot_be_replaced(self):
        from transformers import BloomConfig, BloomForSequenceClassification

        module = BloomForSequenceClassification(BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=8, pad_token_id=0)).eval()
        with pytest.raises(BadModel, match="BloomForSequenceClassification computes attention itself"):
            sparsify(as_model(module), worlds.near_task(), QUICK)

    def test_attention_that_is_something_else(self, monkeypatch):
        monkeypatch.setattr(in_transformers, "dense", lambda *given, own=in_transformers.dense: own(*given) * 2)
        with pytest.raises(BadModel, match="computes something else when lissome computes its attention"):
            sparsify(as_model(worlds.llama(near=True)), worlds.near_task(), QUICK)

    def test_windows_of_its_own(self):
        from transformers import MistralConfig, MistralForSequenceClassification

        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8}
        config = MistralConfig(**sizes, sliding_window=16, initializer_range=1.0, pad_token_id=0, num_labels=2)
        with pytest.raises(BadModel, match="MistralConfig: its window of 16 tokens hides some of 288 keys"):
            sparsify(as_model(MistralForSequenceClassification(config).eval()), worlds.near_task(), QUICK)

    def test_sparse_already(self):
        with pytest.raises(BadModel, match="has sparse attention already"):
            sparsify(as_model(use(worlds.llama(near=True), "window(64)")), worlds.near_task(), QUICK)

    def test_too_few_examples(self):
        with pytest.raises(BadTask, match=r"20 examples, too few to certify that 0\.9 of the quality is kept: 29 would be needed even if nothing were lost"):
            sparsify(as_model(worlds.llama(near=True)), worlds.short_task(), QUICK)
        assert (needed(0.02, 0.05), needed(0.01, 0.05)) == (149, 299)

    def test_a_pattern_that_is_none(self):
        with pytest.raises(BadConfig, match="there is no pattern"):
            sparsify(as_model(worlds.llama(near=True)), worlds.near_task(), QUICK.model_copy(update={"candidates": ("widow(64)",)}))

    def test_scores_below_zero(self):
        with pytest.raises(BadTask, match="some scores are below 0"):
            lost(np.array([-1.0, 2.0]), np.array([-1.0, 2.0]), False, "task")

    def test_a_folder_without_record(self, tmp_path):
        with pytest.raises(BadArtifact, match=r"sparsify\.json cannot be read"):
            read_record(tmp_path)


class TestQuality:
    def test_lost(self):
        assert lost(np.array([1, 1, 0, 0.0]), np.array([1, 0, 1, 0.0]), True, "").tolist() == [0, 1, 0, 0]
        assert lost(np.array([0.5, 0.5, 0.5, 0.0]), np.array([0.4, 0.6, 0.0, 0.3]), False, "") == pytest.approx([0.2, 0, 1, 0])

    def test_the_walk_ends_at_the_first_that_is_not_certified(self):
        asked = []

        def losses(rung):
            asked.append(rung)
            return np.full(200, {0: 0.0, 1: 0.005, 2: 0.3, 3: 0.0}[rung])

        found, rows = boldest([0, 1, 2, 3], losses, 0.05, 0.05)
        assert (found, asked, len(rows)) == (1, [0, 1, 2], 3)

    def test_enough_is_what_certifies_a_model_that_loses_nothing(self):
        task = worlds.near_task()
        for keep in (0.9, 0.925):
            zeros = [np.zeros(len(task.splits["validation"]))]
            certified = boldest([0], lambda _, zeros=zeros: zeros[0], 1 - keep, 0.05)[0] == 0
            try:
                check_enough(task, 1 - keep, {"validation": 0.05})
            except BadTask:
                assert not certified
            else:
                assert certified

    def test_sharing_keeps_configurations_apart(self):
        module = worlds.llama(near=True)
        twin = sharing(module)
        use(twin, "window(64)")
        assert getattr(module.config, FIELD, None) is None
        assert twin.model.layers[0].self_attn.config is twin.config


class TestVerb:
    def test_command_line(self, tmp_path, capsys, faster):
        folder = worlds.folder(tmp_path / "model", near=True)
        begin = ["sparsify", folder, "--task", f"{HERE}:near_task", "--out", str(tmp_path / "out"), "--keep", "90%"]
        assert command(begin) == 0
        told = capsys.readouterr().out
        assert "layer  dense  windows  chosen  mass kept  pairs" in told
        assert "MET   quality kept >= 90 %" in told
        assert "speed       2.00 [1.90, 2.10] x, dense over sparse, at" in told
        assert command([*begin, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["plan"] == ["window(64) | sink(4)"] * 2
        assert set(document) == set(Sparsified.__dataclass_fields__)

    @pytest.mark.parametrize("keep", ["100%", "0", "1", "-3%", "most"])
    def test_keep_outside(self, tmp_path, capsys, keep):
        assert command(["sparsify", "m", "--task", "t", "--out", str(tmp_path / "out"), f"--keep={keep}"]) == 2
        assert f'--keep: "{keep}" is no share\n  Expected: more than 0 and less than 1, such as "98%" or 0.98' in capsys.readouterr().err

    def test_a_verdict_that_is_not_met(self, tmp_path, capsys, faster, monkeypatch):
        monkeypatch.setattr(running, "record_use", lambda *_: 50)  # a test split that has judged many plans
        folder = worlds.folder(tmp_path / "model", near=True)
        assert command(["sparsify", folder, "--task", f"{HERE}:near_task", "--out", str(tmp_path / "out"), "--keep", "90%"]) == 3
        assert "NOT MET   quality kept >= 90 % (99.9 %)" in capsys.readouterr().out
        assert getattr(load_model(str(tmp_path / "out")).module.config, FIELD, None) is None

    def test_export_says_why_not(self, tmp_path):
        from lissome.export.program import export_program

        module = use(worlds.llama(near=True), "window(64)")
        with pytest.raises(BadModel, match=r"^sparse attention runs in torch alone and cannot be exported\n  Do this:  export the dense model"):
            export_program(module, worlds.collate(worlds.texts(2, 0)), True)
