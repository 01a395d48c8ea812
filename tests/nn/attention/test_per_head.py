"""Patterns per head: chosen blocks in some heads and windows in others, and the future cut off without looking at every pair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DistilBertConfig, DistilBertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from lissome.nn.attention import algebra
from lissome.nn.attention.attend import attend
from lissome.nn.attention.in_transformers import listening, use
from lissome.nn.attention.patterns import Sight, causal, limited, select
from lissome.nn.attention.written import parse

MIXED = "per_head(window(40) | sink(3), everything(), window(64) | sink(4) | top_blocks(1), top_blocks(2))"
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 97, "max_position_embeddings": 512}


def sight(queries: int, keys: int, hidden: bool = True, heads: int = 4) -> Sight:
    generator = torch.Generator().manual_seed(queries + keys)
    q, k = torch.randn(2, heads, queries, 8, generator=generator), torch.randn(2, 2, keys, 8, generator=generator)
    return Sight(queries, keys, keys - queries, heads, hidden, q, k)


@settings(max_examples=30, deadline=None)
@given(keys=st.integers(1, 300), share=st.floats(0.01, 1), pattern=st.sampled_from(["window(40) | sink(3)", "everything()", "multi_scale(9, 70)", MIXED]))
def test_one_triangle_cuts_the_future_off(keys, share, pattern):
    given = sight(max(1, int(share * keys)), keys)
    found = parse(pattern).visits(given)
    assert torch.equal(algebra.past(found).dense(), limited(found, causal()).dense())


@settings(max_examples=40, deadline=None)
@given(
    keys=st.integers(1, 300),
    share=st.floats(0.01, 1),
    hidden=st.booleans(),
    pattern=st.sampled_from(["window(40) | sink(3)", "everything()", MIXED]),
    places=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_padding_is_hidden_as_another_document_would_be(keys, share, hidden, pattern, places):
    given = sight(max(1, int(share * keys)), keys, hidden)
    padding = torch.zeros(2, keys, dtype=torch.bool)
    padding[0, int(places[0] * keys) :], padding[1, : int(places[1] * keys)] = True, True  # on the right, on the left
    fast = select(parse(pattern), given, torch.where(padding, -1, 0)).dense()
    assert torch.equal(fast, select(parse(pattern), given, torch.where(padding, -1, 1)).dense())


@pytest.mark.parametrize("hidden", [True, False])
def test_every_head_sees_what_its_own_pattern_shows(hidden):
    given = sight(200, 230, hidden)
    found = select(parse(MIXED), given).dense()
    parts = [parse(text) for text in ("window(40) | sink(3)", "everything()", "window(64) | sink(4) | top_blocks(1)", "top_blocks(2)")]
    for head, part in enumerate(parts):
        own = select(part, given).dense()
        own = own.expand(2, *own.shape[1:])
        assert torch.equal(found[:, head].expand(2, -1, -1), own[:, head if own.shape[1] > 1 else 0])


def test_equal_members_are_one_object_and_places_are_worked_out_once():
    pattern = parse("per_head(window(7) | sink(2), window(9), window(7) | sink(2))")
    assert pattern.patterns[0] is pattern.patterns[2]
    assert select(pattern, sight(90, 90)).blocks is select(pattern, sight(90, 90)).blocks


@pytest.mark.parametrize("prompt", [1, 64, 150])
@torch.no_grad()
def test_a_decoder_with_a_pattern_per_head_says_step_by_step_what_it_says_in_one_go(prompt):
    torch.manual_seed(0)
    model = use(LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2)).eval(), [MIXED, None])
    ids = torch.randint(5, 97, (2, 220), generator=torch.Generator().manual_seed(1))
    whole = model(ids, use_cache=False).logits
    state = model(ids[:, :prompt], use_cache=True)
    found, at = [state.logits], prompt
    for step in (1, 1, 66, 1):
        state = model(ids[:, at : at + step], past_key_values=state.past_key_values, use_cache=True)
        found.append(state.logits)
        at = min(220, at + step)
    torch.testing.assert_close(torch.cat(found, 1), whole[:, :at], atol=5e-5, rtol=5e-5)


@torch.no_grad()
def test_an_encoder_that_does_not_number_its_layers():
    torch.manual_seed(0)
    sizes = {"dim": 32, "hidden_dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 97, "max_position_embeddings": 512}
    model = DistilBertForSequenceClassification(DistilBertConfig(**sizes)).eval()
    ids = torch.randint(5, 97, (2, 200), generator=torch.Generator().manual_seed(1))
    dense = model(ids).logits
    heard = []
    with listening(lambda module, given, scale: heard.append((module.layer_idx, given.causal, given.documents))):
        torch.testing.assert_close(use(model, [None, "everything()"])(ids).logits, dense, atol=2e-5, rtol=2e-5)
    assert heard == [(0, False, None), (1, False, None)]
    assert not torch.equal(use(model, [None, "window(5)"])(ids).logits, dense)


@pytest.mark.parametrize("backend", ["chunked", "auto"])
def test_autocast_changes_nothing_inside(backend):
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 150, 8, generator=draw, requires_grad=True) for _ in range(3)]
    pattern = parse("window(20) | top_blocks(1, leading_query)")

    def run(cast: bool) -> list[torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            out = attend(*inputs, select(pattern, Sight(150, 150, heads=2, q=inputs[0], k=inputs[1])), backend=backend)
            return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    for plain, cast in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, cast)


def test_autocast_in_a_model_that_normalises_its_queries():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = use(Qwen3ForCausalLM(Qwen3Config(**SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=8)).train(), "window(40)")
    ids = torch.randint(5, 97, (2, 100))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
