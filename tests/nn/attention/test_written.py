"""A pattern is its own text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from lissome.core.errors import BadConfig
from lissome.kernels.attention.selection import FULL
from lissome.nn.attention import algebra
from lissome.nn.attention.chosen import top_blocks, top_share
from lissome.nn.attention.patterns import select, sink, window
from lissome.nn.attention.written import SCORERS, parse
from tests.nn.attention.compositions import compositions, seen
from tests.nn.attention.test_patterns import CHOSEN, PLAIN, inputs, looked


@pytest.mark.parametrize("pattern", [*(pattern for pattern, _ in PLAIN), *CHOSEN], ids=str)
def test_text_and_pattern_mean_the_same(pattern):
    q, k, _ = inputs(200)
    assert str(parse(str(pattern))) == str(pattern)
    assert select(parse(str(pattern)), looked(q, k)).dense().equal(select(pattern, looked(q, k)).dense())


@given(pattern=compositions())
@settings(max_examples=60, deadline=None)
def test_every_composition_means_what_it_writes(pattern):
    q, k, _ = inputs(200)
    assert str(parse(str(pattern))) == str(pattern)
    assert seen(parse(str(pattern)), looked(q, k)).equal(seen(pattern, looked(q, k)))


def test_a_union_that_cuts_another_pattern_down_is_written_in_brackets():
    pattern = top_blocks(2) & (window(64) | sink(2))
    assert str(pattern) == "(top_blocks(2)) & (window(64) | sink(2))"
    assert parse(str(pattern)).rule.name == "window(64) | sink(2)"


def test_a_block_is_shown_whole_however_its_parts_are_grouped():
    """The window and the sink show the second tile all of block 0 between them, so a choice beside them must not fall on it."""
    q, k, _ = inputs(200)
    pattern = (top_blocks(1) | (window(100) | sink(28))) | top_share(0.5)
    assert select(parse(str(pattern)), looked(q, k)).dense().equal(select(pattern, looked(q, k)).dense())
    parts = window(100).visits(looked(q, k)), sink(28).visits(looked(q, k))
    assert bool((algebra.union(*parts).masks[0, 0, 1, 0] == FULL).item())


@pytest.mark.parametrize("scorer", list(SCORERS))
def test_every_scorer_can_be_written(scorer):
    pattern = top_blocks(2, SCORERS[scorer])
    assert parse(str(pattern)) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "window(9) | top_blocks(8, indexer)",
        "top_share(0.123456789, indexer)",
        "top_share(1, random_blocks)",
        "window(9) | top_tokens(8, feature_entropy)",
        "top_tokens(8, learned_importance)",
        "window(9) | entropy_tokens(3.25, 8)",
        "learned_tokens(-0.1, 64)",
        "per_head(window(9), window(64) | top_blocks(2, indexer))",
    ],
)
def test_scorers_are_written_by_name(text):
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("windw(3)", 'there is no pattern "windw". Did you mean "window"'),
        ("window(3", "is not a pattern"),
        ("window()", "is not a pattern: .*missing 1 required"),
        ("window(0)", "0 is too small"),
        ("__import__('os').system('true')", "is not understood|there is no pattern"),
        ("window('a')", "is not understood"),
        ("3", '"3" is not understood'),
        ("window(3) + sink(1)", "is not understood"),
        ("window(3) & top_blocks(1)", "must be a rule"),
        ("top_blocks(1, indxer)", 'top_blocks knows no scorer "indxer". Did you mean "indexer"'),
        ("top_blocks(1, feature_entropy)", 'top_blocks knows no scorer "feature_entropy"'),
        ("top_tokens(1, indexer)", 'top_tokens knows no scorer "indexer"'),
        ("top_tokens(0)", "0 is too small"),
        ("top_share(2)", "a share of 2 is not above 0"),
        ("window(2.5)", "is not understood"),
        ("routed([0.5, 'a'])", "is not understood"),
        ("routed([])", "no ratios"),
        ("window-64-entropy-9", 'Did you mean "window-64-entropy-8"'),
    ],
)
def test_what_is_no_pattern_is_said(text, said):
    with pytest.raises(BadConfig, match=said):
        parse(text)
