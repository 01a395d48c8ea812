"""The ways of attending that the benchmarks of long inputs compare: dense, and patterns in which each query sees as many keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lissome.core.errors import BadInput
from lissome.nn.attention.in_transformers import use
from lissome.nn.attention.written import parse

DENSE, WINDOW, RANDOM, POOLED, OURS, ORACLE = "dense", "window alone", "random blocks", "pooled keys", "leading query", "oracle"
Ways = dict[str, str | None]


def ways(window: int, blocks: int, sink: int, more: Sequence[str] = ()) -> Ways:
    """Patterns by name (None: dense). All but dense show a query the same number of keys: the first `sink`, and window + 64 * blocks more.

    more: further ones as NAME=PATTERN, such as "indexer=window(512) | sink(64) | top_blocks(8, indexer)". Raises BadInput, BadConfig.
    """
    near = f"window({window})" + (f" | sink({sink})" if sink else "")
    found: Ways = {
        DENSE: None,
        WINDOW: near.replace(f"window({window})", f"window({window + 64 * blocks})"),
        RANDOM: f"{near} | top_blocks({blocks}, random_blocks)",
        POOLED: f"{near} | top_blocks({blocks})",
        OURS: f"{near} | top_blocks({blocks}, leading_query)",
    }
    for one in more:
        name, equals, text = one.partition("=")
        if not equals:
            raise BadInput(f'--way "{one}" has no name', expected="NAME=PATTERN")
        parse(text)
        found[name.strip()] = text.strip()
    found[ORACLE] = f"{near} | top_blocks({blocks}, oracle_blocks)"
    return found


def attending(model: Any, pattern: str | None) -> Any:
    """The transformers model with a pattern, or dense by torch's own attention; changed in place."""
    if pattern is None:
        model.set_attn_implementation("sdpa")
        return model
    return use(model, pattern)
