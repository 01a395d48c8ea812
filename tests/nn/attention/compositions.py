"""Patterns of patterns for hypothesis: every part, joined by |, & and per_head."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from lissome.nn.attention.chosen import leading_query, top_blocks, top_share
from lissome.nn.attention.importance import entropy_tokens, top_tokens
from lissome.nn.attention.patterns import Pattern, PerHead, Sight, Union, Within, causal, everything, per_head, select, sink, tokens, window


def rules() -> st.SearchStrategy[Pattern]:
    """Patterns that only ask for places."""
    leaves = st.one_of(st.integers(1, 150).map(window), st.integers(1, 80).map(sink), st.sampled_from([causal(), everything()]))
    return st.recursive(leaves, lambda part: st.one_of(st.builds(lambda a, b: a | b, part, part), st.builds(lambda a, b: a & b, part, part)), max_leaves=3)


def compositions(choosing: bool = True) -> st.SearchStrategy[Pattern]:
    """Any pattern that can be written; without those that choose among what is not shown yet, if not `choosing`."""
    leaves = st.one_of(
        rules(),
        st.sampled_from([entropy_tokens(2.3, 5), entropy_tokens(2.2, 70)]),
        st.integers(1, 9).map(top_tokens),
        st.lists(st.integers(0, 220), max_size=4).map(tokens),
    )
    if choosing:
        leaves = st.one_of(leaves, st.integers(1, 3).map(top_blocks), st.sampled_from([top_share(0.3), top_blocks(1, leading_query)]))

    def joined(part: st.SearchStrategy[Pattern]) -> st.SearchStrategy[Pattern]:
        return st.one_of(
            st.builds(lambda a, b: a | b, part, part),
            st.builds(lambda a, b: a & b, part, rules()),
            st.lists(part, min_size=1, max_size=3).map(lambda each: per_head(*each)),
        )

    return st.recursive(leaves, joined, max_leaves=5)


def seen(pattern: Pattern, sight: Sight, documents: torch.Tensor | None = None) -> torch.Tensor:
    """[batch, heads, queries, keys]: what a pattern shows, for every sequence and head."""
    assert sight.q is not None
    return select(pattern, sight, documents).dense().expand(*sight.q.shape[:2], -1, -1)


def meant(pattern: Pattern, sight: Sight, documents: torch.Tensor | None = None) -> torch.Tensor:
    """What a pattern that is not `choosing` should show: what its parts show alone, put together as masks."""
    if isinstance(pattern, Union):
        return meant(pattern.left, sight, documents) | meant(pattern.right, sight, documents)
    if isinstance(pattern, Within):
        return meant(pattern.pattern, sight, documents) & meant(pattern.rule, sight, documents)
    if isinstance(pattern, PerHead):
        own = [meant(pattern.patterns[head % len(pattern.patterns)], sight, documents)[:, head] for head in range(sight.heads)]
        return torch.stack(own, 1)
    return seen(pattern, sight, documents)
