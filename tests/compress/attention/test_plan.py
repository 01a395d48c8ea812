"""Candidates, profiles and plans: held to plain softmax and to the text that has to be read again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.compress.attention.plan import DENSE, Table, candidates, chosen_for, kind_of, layers_of, plan_for, profile, rungs_of
from lissome.core.errors import BadConfig, BadModel
from lissome.nn.attention.in_transformers import use
from lissome.nn.attention.patterns import Sight, select
from lissome.nn.attention.written import parse
from tests.compress.attention import worlds
from tests.nn import tiny

TEXTS = ("window(64) | sink(4)", "window(64) | sink(4) | top_blocks(1)", "window(128) | sink(4)", DENSE)


def shares():
    return st.lists(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=3, max_size=3), min_size=2, max_size=2)


@pytest.mark.parametrize(("causal", "longest"), [(True, 50), (True, 300), (True, 2000), (False, 128), (False, 600)])
def test_candidates_are_read_and_show_less_than_everything(causal, longest):
    found = candidates(causal, longest)
    assert found[-1] == DENSE
    assert (longest > 64) == (len(found) > 1) or not causal
    sight = Sight(longest, longest, 0, 1, causal, torch.randn(1, 1, longest, 4), torch.randn(1, 1, longest, 4))
    whole = select(parse(DENSE), sight).dense()
    for text in found[:-1]:
        seen = select(parse(text), sight).dense()
        assert seen.sum() < whole.sum()
        assert causal or bool(seen[..., 0, :].all()), "a classifier's first token sees all"


def test_kinds():
    assert [kind_of(text) for text in (*TEXTS, "window(8) | sink(4) | from_first(1)")] == ["windows", "chosen", "windows", "dense", "windows"]


@settings(max_examples=60, deadline=None)
@given(kept=shares(), share=shares(), tau=st.floats(0, 1))
def test_every_head_gets_the_cheapest_that_keeps_enough(kept, share, tau):
    for one in (head for layer in kept for head in layer):
        one[-1] = 1.0
    for one in (head for layer in share for head in layer):
        one[-1] = 1.0
    table = Table(TEXTS, kept, share, True, 4, 300)
    for layer, heads in enumerate(chosen_for(table, tau)):
        for head, at in enumerate(heads):
            k, s = kept[layer][head], share[layer][head]
            assert k[at] >= tau
            assert all(s[at] <= s[other] for other in range(4) if k[other] >= tau and tau < 1)
    for text, layer in zip(plan_for(table, tau), layers_of(table, tau), strict=True):
        assert text is None or str(parse(text)) == text, "a plan is read as it is written"
        assert sum(layer.heads.values()) == 3
    assert plan_for(table, 1.0) == (None, None)
    plans = [rung.plan for rung in rungs_of(table, (1.0, 0.9, 0.5, 0.0))]
    assert len(plans) == len(set(plans)), "each plan once" if tau else ""


def test_global_tokens_are_for_all_heads_of_a_layer_or_for_none():
    texts = ("window(64) | top_tokens(4, feature_entropy)", "window(128)", DENSE)
    kept = [[0.9, 0.8, 1.0], [0.4, 0.8, 1.0]], [[0.9, 0.8, 1.0], [0.95, 0.1, 1.0]]
    table = Table(texts, [list(layer) for layer in kept], [[[0.2, 0.4, 1.0]] * 2] * 2, True, 4, 300)
    assert chosen_for(table, 0.7) == [[1, 1], [0, 0]]
    assert chosen_for(table, 0.85) == [[2, 2], [0, 0]]
    assert chosen_for(table, 0.0) == [[0, 0], [0, 0]]
    assert chosen_for(table, 1.0) == [[2, 2], [2, 2]]
    sight = Sight(200, 200, 0, 2, True, torch.randn(1, 2, 200, 4), torch.randn(1, 2, 200, 4))
    assert all(select(parse(text), sight) for text in plan_for(table, 0.7)), "what is planned can be selected"


def test_the_profile_is_what_plain_softmax_says():
    module = use(tiny.bert(max_position_embeddings=300), [None, None])
    torch.manual_seed(0)
    ids = torch.randint(1, 100, (2, 200))
    mask = torch.ones_like(ids)
    mask[1, 150:] = 0
    texts = ("window(20) | from_first(1)", "window(64) | top_blocks(1)", DENSE)
    table = profile(module, [{"input_ids": ids, "attention_mask": mask}], texts, rows=1000)
    assert (table.causal, table.examples, table.longest) == (False, 2, 200)
    module.set_attn_implementation("eager")
    with torch.no_grad():
        maps = module(ids, attention_mask=mask, output_attentions=True).attentions
    near = (torch.arange(200)[:, None] - torch.arange(200)).abs() < 20
    near[0] = True
    for layer in (0, 1):
        first, second = maps[layer][0], maps[layer][1, :, :150, :150]
        wanted = ((first * near).sum(-1).mean(-1) + (second * near[:150, :150]).sum(-1).mean(-1)) / 2
        np.testing.assert_allclose(np.array(table.kept[layer])[:, 0], wanted.numpy(), atol=1e-5)
    kept, share = np.array(table.kept), np.array(table.share)
    assert kept.shape == share.shape == (2, 2, 3)
    assert (kept[..., -1] == 1).all()
    assert (share[..., -1] == 1).all()
    assert (share[..., 0] < 1).all()


def test_padding_on_either_side_does_not_count():
    module = use(worlds.llama(near=False), [None, None])
    row = worlds.texts(1, 3)[0][None]
    found = []
    for before, after in ((0, 0), (0, 40), (40, 0)):
        pad = ((0, 0), (before, after))
        batch = {"input_ids": np.pad(row, pad), "attention_mask": np.pad(np.ones_like(row), pad)}
        found.append(profile(module, [batch], ("window(64) | sink(4)", DENSE)))
    for one in found[1:]:
        np.testing.assert_allclose(one.kept[0], found[0].kept[0], atol=1e-6)
        assert (one.share, one.longest) == (found[0].share, found[0].longest)


def test_what_cannot_be_profiled_is_said():
    with pytest.raises(BadConfig, match="the last candidate must be dense"):
        profile(tiny.mlp(), [], ["window(3)"])
    with pytest.raises(BadModel, match="Mlp runs no self-attention through transformers' AttentionInterface"):
        profile(tiny.mlp(), [tiny.rows(2)], [DENSE])
