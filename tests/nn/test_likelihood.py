"""Log-likelihoods in chunks of rows are those of all logits at once, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lissome.nn import likelihood
from lissome.nn.likelihood import IGNORED, parts_of, token_log_likelihoods, window_log_likelihoods

WORDS = 31


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": WORDS, "initializer_range": 0.5}
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=WORDS, n_positions=64)).eval()


class Table(nn.Module):
    """Logits from a table: a module in which no head can be found."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(WORDS, WORDS)

    def forward(self, input_ids):
        return self.table(input_ids)


MODULES = [llama(), gpt2(), Table()]


def plain(module, batch, targets):
    logits = module(**batch)
    logits = getattr(logits, "logits", logits).float()
    found = -functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return found.view(targets.shape)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(0, 100), st.sampled_from([WORDS, 3 * WORDS, 1 << 20]))
def test_chunks_equal_the_whole(module, batch, length, seed, floats):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (batch, length), generator=draw)
    targets = torch.randint(0, WORDS, (batch, length), generator=draw).masked_fill(torch.rand(batch, length, generator=draw) < 0.3, IGNORED)
    given, weights = {"input_ids": ids}, torch.rand(batch, length, generator=draw)
    before, likelihood.FLOATS = likelihood.FLOATS, floats
    try:
        found = token_log_likelihoods(module, given, targets)
        (found * weights).sum().backward()
    finally:
        likelihood.FLOATS = before
    ours = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in module.parameters()]
    module.zero_grad()
    expected = plain(module, given, targets)
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for one, parameter in zip(ours, module.parameters(), strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if parameter.grad is None else parameter.grad, atol=1e-5, rtol=1e-4)
    module.zero_grad()


@torch.no_grad()
def test_windows_score_every_token_but_the_first_and_no_padding():
    ids = torch.randint(3, WORDS, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    found = window_log_likelihoods(MODULES[0], {"input_ids": ids, "attention_mask": mask})
    assert found.shape == (2, 11)
    assert bool((found[1, 7:] == 0).all())
    assert bool((found[0] < 0).all()) and bool((found[1, :7] < 0).all())
    torch.testing.assert_close(found[1, :7], window_log_likelihoods(MODULES[0], {"input_ids": ids[1:, :8]})[0], atol=1e-5, rtol=1e-5)


def test_a_head_is_found_where_it_is_all_there_is_between_trunk_and_logits():
    assert parts_of(MODULES[0]) is not None
    assert parts_of(MODULES[1]) is not None
    assert parts_of(MODULES[2]) is None
    capped = llama()
    capped.config.final_logit_softcapping = 30.0
    assert parts_of(capped) is None
