"""Patterns as text, so that a model's configuration can hold them: `parse(str(pattern))` is the pattern."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable

from lissome.core.errors import BadConfig, closest
from lissome.nn.attention import chosen, importance, indexer, mass, patterns, variants
from lissome.nn.attention.patterns import Pattern

MAKERS: dict[str, Callable[..., Pattern]] = {
    "causal": patterns.causal,
    "everything": patterns.everything,
    "window": patterns.window,
    "sink": patterns.sink,
    "from_first": patterns.from_first,
    "tokens": patterns.tokens,
    "per_head": patterns.per_head,
    "multi_scale": patterns.multi_scale,
    "top_blocks": chosen.top_blocks,
    "top_share": chosen.top_share,
    "top_tokens": importance.top_tokens,
    "entropy_tokens": importance.entropy_tokens,
    "learned_tokens": importance.learned_tokens,
    "routed": variants.routed,
}
SCORERS: dict[str, Callable[..., object]] = {
    "pooled_keys": chosen.pooled_keys,
    "leading_query": chosen.leading_query,
    "random_blocks": chosen.random_blocks,
    "oracle_blocks": mass.oracle_blocks,
    "indexer": indexer.indexer,
}
TOKEN_SCORERS: dict[str, Callable[..., object]] = {"feature_entropy": importance.feature_entropy, "learned_importance": importance.learned_importance}
FRACTIONS = ("top_share", "entropy_tokens", "learned_tokens", "routed")
"""Makers that take numbers with a fraction."""


def parse(text: str) -> Pattern:
    """The pattern that `text` writes, such as "window(512) | sink(64) | top_blocks(8)", or names (`variants.VARIANTS`). Nothing but patterns is evaluated.

    Raises BadConfig where it is none, naming the part that is not understood.
    """
    if text in variants.VARIANTS:
        return variants.VARIANTS[text]()
    try:
        return _pattern(ast.parse(text, mode="eval").body, text)
    except SyntaxError as error:
        raise BadConfig(f'"{text}" is not a pattern: {error.msg}', expected='such as "window(512) | sink(64) | top_blocks(8)"') from error
    except (TypeError, ValueError) as error:
        raise BadConfig(f'"{text}" is not a pattern: {error}') from error


def _pattern(node: ast.expr, text: str) -> Pattern:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _pattern(node.left, text) | _pattern(node.right, text)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        return _pattern(node.left, text) & _pattern(node.right, text)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        name = node.func.id
        if name not in MAKERS:
            raise BadConfig(f'"{text}": there is no pattern "{name}".{closest(name, list(MAKERS))}', expected=", ".join(MAKERS))
        return MAKERS[name](*(_argument(argument, name, text) for argument in node.args))
    near = closest(text, list(variants.VARIANTS))
    raise BadConfig(
        f'"{text}": "{ast.unparse(node)}" is not understood.{near}', expected=f"patterns joined by | and &, or one of {', '.join(variants.VARIANTS)}"
    )


def _argument(node: ast.expr, maker: str, text: str) -> object:
    if isinstance(node, ast.Name):
        known = TOKEN_SCORERS if maker == "top_tokens" else SCORERS
        if node.id not in known:
            raise BadConfig(f'"{text}": {maker} knows no scorer "{node.id}".{closest(node.id, list(known))}', expected=", ".join(known))
        return known[node.id]
    if isinstance(node, ast.Call | ast.BinOp):
        return _member(ast.unparse(node))
    found = ast.literal_eval(node)
    if not _number(found, maker) and not (isinstance(found, list) and all(_number(one, maker) for one in found)):
        raise BadConfig(f'"{text}": "{ast.unparse(node)}" is not understood', expected="numbers" if maker in FRACTIONS else "whole numbers")
    return found


@functools.lru_cache(maxsize=1024)
def _member(text: str) -> Pattern:
    """A pattern within another. Equal texts are one object, so that heads with equal patterns share the work."""
    return _pattern(ast.parse(text, mode="eval").body, text)


def _number(found: object, maker: str) -> bool:
    return isinstance(found, int | float if maker in FRACTIONS else int) and not isinstance(found, bool)
