"""Fitting learned scorers changes them and nothing else, and shows more of attention than before."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lissome.compress.attention.indexing import IndexingConfig, fit_importance, fit_indexers, thresholds
from lissome.core.errors import BadConfig, BadInput
from lissome.nn.attention.importance import feature_entropy
from lissome.nn.attention.in_transformers import listening, use
from lissome.nn.attention.mass import kept
from lissome.nn.attention.patterns import select
from lissome.nn.attention.written import parse
from lissome.train.config import TrainConfig
from tests.nn.attention.test_in_transformers import SIZES, ids, llama

INDEXED = "window(16) | top_blocks(1, indexer)"
SHORT = IndexingConfig(train=TrainConfig(steps=25, lr=3e-3, weight_decay=0.0, precision="fp32"), rows=32)


def sharp():
    """A tiny model whose queries look for the same things all along, so that where they look can be learned."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=6, num_key_value_heads=3, attention_bias=True)).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.bias.normal_(0, 3)
            layer.self_attn.k_proj.weight.mul_(10)
    return model


def drop(result):
    """Mean loss of the last steps over that of the first."""
    losses = [row["loss"] for row in result.history]
    return sum(losses[-5:]) / sum(losses[:5])


def batches():
    draw = torch.Generator().manual_seed(4)
    return [{"input_ids": torch.randint(5, 97, (2, 320), generator=draw), "labels": torch.zeros(2, 320)} for _ in range(4)]


@torch.no_grad()
def share(model, pattern):
    """Mean share of attention's mass that a pattern shows, over the layers."""
    found = []

    def watch(module, sight, scale):
        found.append(float(kept(sight, select(parse(pattern), sight), torch.arange(128, 320, 3), scale).mean()))

    with listening(watch, dense=True):
        model(ids(320))
    return sum(found) / len(found)


def test_a_fit_shows_more_and_changes_nothing_else():
    model = use(sharp(), INDEXED)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = share(model, INDEXED)
    result = fit_indexers(model, batches(), SHORT)
    assert result.steps == 25
    assert drop(result) < 0.9
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (".indexer." not in name)
    assert share(model, INDEXED) > max(fresh, share(model, "window(16) | top_blocks(1)"))


def test_the_same_seed_gives_the_same_bits():
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        model = use(sharp(), INDEXED)
        fit_indexers(model, batches(), IndexingConfig(train=TrainConfig(steps=3), rows=8))
        found.append(model.model.layers[1].self_attn.indexer.query)
    assert torch.equal(*found)


def test_importance_is_fitted_the_same_way():
    pattern = "window(16) | top_tokens(12, learned_importance)"
    model = use(sharp(), pattern)
    result = fit_importance(model, batches(), IndexingConfig(train=TrainConfig(steps=25, lr=0.1, weight_decay=0.0), rows=32))
    assert drop(result) < 0.9
    assert bool(model.model.layers[0].self_attn.importance.weight.any())


def test_one_indexer_serves_several_patterns():
    narrow, wide = "window(16) | top_blocks(1, indexer)", "window(200) | sink(4) | top_blocks(1, indexer)"
    found = {}
    for patterns in ((narrow,), (wide,), (narrow, wide)):
        torch.manual_seed(1)
        model = use(sharp(), narrow)
        result = fit_indexers(model, batches(), IndexingConfig(train=TrainConfig(steps=1), rows=64), patterns=[parse(text) for text in patterns])
        found[patterns] = result.history[0]["loss"]
    assert found[(narrow, wide)] == pytest.approx((found[(narrow,)] + found[(wide,)]) / 2, rel=1e-5)


def test_only_layers_that_are_asked_are_fitted_and_padding_is_left_out():
    model = use(sharp(), ["window(9)", INDEXED])
    padded = [{**batch, "attention_mask": (torch.arange(320) < 250).long().expand(2, -1)} for batch in batches()]
    changed = [{**batch, "input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], 9)} for batch in padded]
    found = []
    for given in (padded, changed):
        torch.manual_seed(1)
        model.model.layers[1].self_attn.indexer.reset()
        fit_indexers(model, given, IndexingConfig(train=TrainConfig(steps=3), rows=64))
        found.append(model.model.layers[1].self_attn.indexer.query.clone())
    assert torch.equal(*found)


def test_thresholds_let_the_wanted_number_pass():
    model = use(llama(), "everything()")
    found = thresholds(model, batches(), feature_entropy, 10)
    assert len(found) == 2
    counts = []

    def watch(module, sight, scale):
        counts.append(float((feature_entropy(sight.k) >= found[module.layer_idx]).sum(-1).float().mean()))

    with torch.no_grad(), listening(watch, dense=True):
        for batch in batches():
            model(batch["input_ids"])
    assert sum(counts) / len(counts) == pytest.approx(10, abs=0.1)


def test_what_cannot_be_fitted_is_said():
    with pytest.raises(BadConfig, match=r"no layer of the model has a learned indexer\n.*top_blocks\(8, indexer\)"):
        fit_indexers(use(llama(), "window(9)"), batches())
    short = [{"input_ids": ids(50)}]
    with pytest.raises(BadInput, match="no query had a choice"):
        fit_indexers(use(llama(), INDEXED), short, SHORT)
    with pytest.raises(BadInput, match="60 tokens cannot be global in a sequence of 50"):
        thresholds(use(llama(), "everything()"), short, feature_entropy, 60)
    with pytest.raises(BadConfig, match="no layer of the model has a pattern"):
        thresholds(llama(), short, feature_entropy, 5)
