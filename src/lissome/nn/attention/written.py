"""Patterns as text, so that a model's configuration can hold them: `parse(str(pattern))` is the pattern."""

from __future__ import annotations

import ast
from collections.abc import Callable

from lissome.core.errors import BadConfig, closest
from lissome.nn.attention import chosen, mass, patterns
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
}
SCORERS = {"pooled_keys": chosen.pooled_keys, "random_blocks": chosen.random_blocks, "oracle_blocks": mass.oracle_blocks}


def parse(text: str) -> Pattern:
    """The pattern that `text` writes, such as "window(512) | sink(64) | top_blocks(8)". Nothing but patterns is evaluated.

    Raises BadConfig where it is none, naming the part that is not understood.
    """
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
        return MAKERS[name](*(_argument(argument, text) for argument in node.args))
    raise BadConfig(f'"{text}": "{ast.unparse(node)}" is not understood', expected="patterns joined by | and &")


def _argument(node: ast.expr, text: str) -> object:
    if isinstance(node, ast.Name) and node.id in SCORERS:
        return SCORERS[node.id]
    if isinstance(node, ast.Call | ast.BinOp):
        return _pattern(node, text)
    found = ast.literal_eval(node)
    if not isinstance(found, int | list):
        raise BadConfig(f'"{text}": "{ast.unparse(node)}" is not understood', expected="whole numbers")
    return found
