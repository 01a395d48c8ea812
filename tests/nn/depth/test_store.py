"""Folders with exits: the trunk comes back with all that was changed about it."""

import dataclasses

import pytest
import torch

from lissome.core.errors import BadModel
from lissome.core.model import Resize
from lissome.nn.attention.in_transformers import use as use_pattern
from lissome.nn.call import call
from lissome.nn.depth.exits import with_exits
from lissome.nn.depth.store import as_exits_model, reopened, save_exits
from lissome.nn.ffn import ActivationPlan, use
from lissome.nn.load import as_model, load_model
from lissome.nn.resize import resize
from tests.nn import tiny

INPUTS = tiny.tensors(tiny.texts(5, 12))


def same_again(exits, trunk, folder):
    exits.trained.fill_(True)
    model = as_exits_model(exits.leave_at([0.6] * len(exits.after)), trunk)
    save_exits(model, folder)
    again = load_model(str(folder))
    with torch.no_grad():
        assert torch.equal(call(again.module, INPUTS), call(exits.eval(), INPUTS))
    assert again.fingerprint == model.fingerprint
    return again.module


def test_activations_and_attention_patterns_come_back(tmp_path):
    module = tiny.bert(num_hidden_layers=3, attention_probs_dropout_prob=0.0)
    with torch.no_grad():
        before = call(module, INPUTS)
        use_pattern(module, ["window(3)", None, "window(2) | sink(1)"])
        use(module, ActivationPlan(activation="relu", thresholds=(0.0, 0.1, 0.2)))
        assert not torch.allclose(call(module, INPUTS), before, atol=1e-3)
    again = same_again(with_exits(module, [1, 2], INPUTS), as_model(module), tmp_path / "model").module
    assert again.config.lissome_attention[0] == "window(3)" and again.bert.encoder.layer[2].intermediate.intermediate_act_fn.threshold == 0.2


def test_learned_scorers_come_back(tmp_path):
    module = use_pattern(tiny.bert(attention_probs_dropout_prob=0.0), "window(2) | top_tokens(2, learned_importance)")
    same_again(with_exits(module, [1], INPUTS), as_model(module), tmp_path / "model")


def test_a_pruned_trunk_comes_back(tmp_path):
    plan, module = Resize(blocks={"bert.encoder.layer": (0, 2)}), tiny.bert(num_hidden_layers=3)
    resize(module, plan)
    trunk = as_model(module)
    trunk = dataclasses.replace(trunk, architecture=trunk.architecture.model_copy(update={"resize": plan}))
    assert same_again(with_exits(module, [1], INPUTS), trunk, tmp_path / "model").depth == 2


def test_settings_are_in_the_fingerprint():
    def mark(after=1, rule="margin", pattern=None):
        module = tiny.bert(num_hidden_layers=3, attention_probs_dropout_prob=0.0)
        torch.manual_seed(0)
        exits = with_exits(use_pattern(module, pattern) if pattern else module, [after], INPUTS, rule=rule)
        return as_exits_model(exits, as_model(module)).fingerprint

    marks = [mark(), mark(after=2), mark(rule="entropy"), mark(pattern="window(2)"), mark(pattern="window(3)")]
    assert len(set(marks)) == len(marks) and marks[0] == mark()


def test_a_trunk_that_transformers_does_not_have():
    with pytest.raises(BadModel, match='has no model class "NoSuchModel"'):
        reopened({"kind": "huggingface", "target": "NoSuchModel"}, {"heads": {}, "complexity": None})
    with pytest.raises(BadModel, match="has no model class"):
        reopened({"kind": "huggingface", "target": "AutoModel"}, {"heads": {}, "complexity": None})
