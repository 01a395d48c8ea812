"""Patterns: which keys a query may see. They compose with `|` and with `& rule`, and can draw themselves.

    window(512) | sink(64) | top_blocks(8)
    per_head(window(32), window(64), window(128)) | tokens([0, 17])

A rule says it by where query and key stand; other patterns look at the queries and keys themselves. Whether the future is visible is not a pattern's
business: `select` cuts it off unless it is told that attention runs both ways.
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lissome.core.errors import BadTensor
from lissome.kernels.attention.selection import FULL, TILE, Selection, blocks_of, tiles_of
from lissome.nn.attention import algebra
from lissome.nn.attention.sight import Sight as Sight
from lissome.nn.attention.sight import Span as Span


class Pattern:
    """Which keys a query may see."""

    name: str

    def visits(self, sight: Sight) -> Selection:
        """What the pattern shows, before the future is cut off."""
        raise NotImplementedError

    def __or__(self, other: Pattern) -> Pattern:
        return Union(self, other)

    def __and__(self, other: Pattern) -> Pattern:
        if not isinstance(other, Rule):
            raise ValueError(f"{self.name} & {other.name}: what stands right of & must be a rule, such as window(64) or causal()")
        return Within(self, other)

    def __str__(self) -> str:
        return self.name

    def draw(self, length: int = 512, *, causal: bool = True, cells: int = 32, head: int = 0) -> str:
        """A picture of `length` tokens in `cells` lines: rows are queries, columns keys; the denser a cell, the darker.

        What looks at queries and keys is drawn for random ones, the same in every call.
        """
        q, k = (torch.randn(1, head + 1, length, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
        whole = select(self, Sight(length, length, 0, head + 1, causal, q, k)).dense()
        seen = whole[0, min(head, whole.shape[1] - 1)].float()
        cells = min(cells, length)
        shares = torch.nn.functional.adaptive_avg_pool2d(seen[None, None], cells)[0, 0]
        return "\n".join("".join(" .:*#"[min(4, int(share * 4) + int(share > 0))] * 2 for share in row).rstrip() for row in shares.tolist())


@dataclass(frozen=True)
class Union(Pattern):
    """What either pattern shows."""

    left: Pattern
    right: Pattern

    @property
    def name(self) -> str:  # type: ignore[override]
        """As it is written."""
        return f"{self.left.name} | {self.right.name}"

    def visits(self, sight: Sight) -> Selection:
        """Both, put together."""
        left = self.left.visits(sight)
        shown = left if sight.shown is None else algebra.union(sight.shown, left)
        return algebra.union(left, self.right.visits(dataclasses.replace(sight, shown=shown)))


@dataclass(frozen=True)
class Within(Pattern):
    """What a pattern shows where a rule allows it."""

    pattern: Pattern
    rule: Rule

    @property
    def name(self) -> str:  # type: ignore[override]
        """As it is written."""
        return f"({self.pattern.name}) & ({self.rule.name})"

    def visits(self, sight: Sight) -> Selection:
        """The pattern, cut down."""
        return limited(self.pattern.visits(sight), self.rule)


@dataclass(frozen=True)
class Rule(Pattern):
    """A pattern that only asks where query and key stand.

    sees: (positions of queries, positions of keys), which broadcast, -> bool. some, every: (spans of queries, spans of keys) -> whether any, and whether
    each query sees each key of the span; `some` may say yes too often and `every` no too often, never the reverse.
    """

    name: str
    sees: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    some: Callable[[Span, Span], torch.Tensor]
    every: Callable[[Span, Span], torch.Tensor]

    def visits(self, sight: Sight) -> Selection:
        """The blocks in which the rule shows anything."""
        return _by_rule(self, sight.queries, sight.keys, sight.offset, sight.causal)

    def __or__(self, other: Pattern) -> Pattern:
        if not isinstance(other, Rule):
            return Union(self, other)
        return Rule(
            f"{self.name} | {other.name}",
            lambda q, k: self.sees(q, k) | other.sees(q, k),
            lambda q, k: self.some(q, k) | other.some(q, k),
            lambda q, k: self.every(q, k) | other.every(q, k),
        )

    def __and__(self, other: Pattern) -> Pattern:
        if not isinstance(other, Rule):
            return super().__and__(other)
        return Rule(
            f"({self.name}) & ({other.name})",
            lambda q, k: self.sees(q, k) & other.sees(q, k),
            lambda q, k: self.some(q, k) & other.some(q, k),
            lambda q, k: self.every(q, k) & other.every(q, k),
        )


def causal() -> Rule:
    """Keys up to the query's own place."""
    return Rule("causal()", lambda q, k: k <= q, lambda q, k: k.first <= q.last, lambda q, k: k.last <= q.first)


def everything() -> Rule:
    """Every key: dense attention."""

    def yes(q: Span, k: Span) -> torch.Tensor:
        return (q.first >= 0) & (k.first >= 0)

    return Rule("everything()", lambda q, k: (q >= 0) & (k >= 0), yes, yes)


def window(width: int) -> Rule:
    """Keys less than `width` places away, the query's own among them (Longformer, Beltagy et al. 2020; causal: the last `width` keys)."""
    at_least("window", width)
    return Rule(
        f"window({width})",
        lambda q, k: (q - k).abs() < width,
        lambda q, k: (k.last > q.first - width) & (k.first < q.last + width),
        lambda q, k: (k.first > q.last - width) & (k.last < q.first + width),
    )


def sink(count: int) -> Rule:
    """The first `count` keys, or as many as there are, which models use as a place to attend to nothing (StreamingLLM, Xiao et al. 2023)."""
    at_least("sink", count)
    return Rule(
        f"sink({count})",
        lambda q, k: (k < count) & (q >= 0),
        lambda q, k: (k.first < count) & (q.last >= 0),
        lambda q, k: (k.last < count) & (q.last >= 0),
    )


def from_first(count: int) -> Rule:
    """The first `count` queries see every key, as a classifier's [CLS] does; attention both ways only."""
    at_least("from_first", count)
    return Rule(
        f"from_first({count})",
        lambda q, k: (q < count) & (k >= 0),
        lambda q, k: (q.first < count) & (k.last >= 0),
        lambda q, k: (q.last < count) & (k.last >= 0),
    )


@dataclass(frozen=True)
class Tokens(Pattern):
    """Single keys that every query sees, wherever they lie: global tokens."""

    positions: tuple[int, ...]

    @property
    def name(self) -> str:  # type: ignore[override]
        """As it is written."""
        return f"tokens([{', '.join(map(str, self.positions))}])"

    def visits(self, sight: Sight) -> Selection:
        """Blocks of these tokens, visited by every tile."""
        kept = [position for position in self.positions if position < sight.keys]
        return of_tokens(torch.tensor(kept, dtype=torch.int64).view(1, 1, -1), sight)


def tokens(positions: Sequence[int]) -> Tokens:
    """Global tokens at `positions`, those of them that there are yet."""
    for position in positions:
        at_least("tokens: positions are counted from 0", position, 0)
    return Tokens(tuple(sorted(set(positions))))


def strided(step: int, length: int) -> Tokens:
    """Every `step`-th key of the first `length`, the last of each run (the summaries of Child et al. 2019, "fixed")."""
    at_least("strided", step)
    return Tokens(tuple(range(step - 1, length, step)))


@dataclass(frozen=True)
class PerHead(Pattern):
    """Patterns that the heads take in turn."""

    patterns: tuple[Pattern, ...]

    @property
    def name(self) -> str:  # type: ignore[override]
        """As it is written."""
        return f"per_head({', '.join(pattern.name for pattern in self.patterns)})"

    def visits(self, sight: Sight) -> Selection:
        """Each head's own; heads of equal patterns share the work."""
        owner = [self.patterns[head % len(self.patterns)] for head in range(sight.heads)]
        distinct = list(dict.fromkeys(owner))
        return algebra.by_head([pattern.visits(sight) for pattern in distinct], [distinct.index(pattern) for pattern in owner])


def per_head(*patterns: Pattern) -> PerHead:
    """Head i takes pattern i, cycling."""
    if not patterns:
        raise ValueError("per_head: give at least one pattern")
    for pattern in patterns:
        if not isinstance(pattern, Pattern):
            raise ValueError(f"per_head: {pattern!r} is no pattern")
    return PerHead(patterns)


def multi_scale(*widths: int) -> PerHead:
    """Windows of several widths, one a head in turn."""
    return per_head(*(window(width) for width in widths))


def select(pattern: Pattern, sight: Sight, documents: torch.Tensor | None = None) -> Selection:
    """The selection of a pattern: the future cut off where attention is causal, other documents hidden, no key twice.

    documents: [1 or batch, keys] int, the document each key is of; a negative one is padding, which nothing sees and which sees nothing.
    Raises BadTensor where what is looked at does not fit.
    """
    sight = sight if documents is None else dataclasses.replace(sight, documents=documents)
    if still(pattern):
        found = _placed(pattern, sight.queries, sight.keys, sight.offset, sight.heads, sight.causal)
    else:
        found = _bounded(pattern.visits(sight), sight.causal)
    if documents is not None:
        found = _separated(found, documents)
    return algebra.once(found)


def still(pattern: Pattern) -> bool:
    """Whether what a pattern shows follows from places alone, so that it is worked out once for all calls of equal lengths."""
    if isinstance(pattern, Union):
        return still(pattern.left) and still(pattern.right)
    if isinstance(pattern, Within):
        return still(pattern.pattern)
    return all(still(one) for one in pattern.patterns) if isinstance(pattern, PerHead) else isinstance(pattern, Rule | Tokens)


@functools.lru_cache(maxsize=64)
def _placed(pattern: Pattern, queries: int, keys: int, offset: int, heads: int, hidden: bool) -> Selection:
    """What a pattern shows that only asks for places."""
    return _bounded(pattern.visits(Sight(queries, keys, offset, heads, hidden)), hidden)


def _bounded(selection: Selection, hidden: bool) -> Selection:
    """The future cut off where it is hidden."""
    if not hidden:
        return selection
    return algebra.past(selection) if selection.tokens is None else limited(selection, causal())


def limited(selection: Selection, rule: Rule) -> Selection:
    """What a selection shows and a rule allows."""
    queries, keys = spans(selection)
    return algebra.cut(selection, rule.some(queries, keys), rule.every(queries, keys), lambda _, q, k: rule.sees(q, k) & (k >= 0))


def spans(selection: Selection) -> tuple[Span, Span]:
    """Of every visit, where its queries and its keys stand [b, h, tiles, most]. A block of tokens spans all keys."""
    first = (selection.offset // TILE + torch.arange(selection.tiles, device=selection.blocks.device))[None, None, :, None] * TILE
    own = selection.blocks < selection.plain
    begin = torch.where(own, selection.blocks * TILE, 0)
    end = torch.where(own, (selection.blocks * TILE + TILE - 1).clamp(max=selection.keys - 1), selection.keys - 1)
    return Span(first.expand(begin.shape), first.expand(begin.shape) + TILE - 1), Span(begin, end)


def of_tokens(positions: torch.Tensor, sight: Sight, seen: torch.Tensor | None = None) -> Selection:
    """A selection in which every tile visits `positions` [b, h, extra] (-1: none there); with `seen` [b, h, tiles, extra] bool, only those it marks."""
    batch, heads, extra = positions.shape
    tiles, plain = tiles_of(sight.queries, sight.offset), blocks_of(sight.keys)
    numbers = torch.arange(plain, plain + blocks_of(extra), dtype=torch.int32, device=positions.device)
    blocks = numbers.expand(batch, heads, tiles, -1).contiguous()
    if not extra:
        empty = torch.full((batch, heads, tiles, 1), -1, dtype=torch.int32, device=positions.device)
        bits = torch.zeros(0, TILE, dtype=torch.int64, device=positions.device)
        return Selection(empty, empty.clone(), bits, sight.queries, sight.keys, sight.offset)
    there = (positions >= 0)[:, :, None].expand(-1, -1, tiles, -1)
    there = torch.nn.functional.pad(there if seen is None else there & seen, (0, blocks_of(extra) * TILE - extra)).view(batch, heads, tiles, -1, TILE)
    bits, which = torch.unique(-there.long().reshape(-1, TILE), dim=0, return_inverse=True)
    found = Selection(blocks, which.view(blocks.shape).int(), bits, sight.queries, sight.keys, sight.offset, positions.clamp(min=0))
    if seen is None:
        return found
    return algebra.trimmed(dataclasses.replace(found, blocks=torch.where(there.any(-1), blocks, -1)))


@functools.lru_cache(maxsize=64)
def _by_rule(rule: Rule, queries: int, keys: int, offset: int, hidden: bool) -> Selection:
    """The visits of a rule; `hidden`: without those that lie in the future, which would be cut off anyway."""
    tiles, plain = tiles_of(queries, offset), blocks_of(keys)
    first = (offset // TILE + torch.arange(tiles))[:, None] * TILE
    begin = torch.arange(plain)[None, :] * TILE
    at = (Span(first, first + TILE - 1), Span(begin, (begin + TILE - 1).clamp(max=keys - 1)))
    some = rule.some(*at) & (causal().some(*at) if hidden else torch.ones((), dtype=torch.bool))
    counts = some.sum(1)
    most = max(1, int(counts.max()))
    blocks = torch.where(some, torch.arange(plain), algebra.NOWHERE).sort(dim=1).values[:, :most]
    blocks = torch.where(blocks == algebra.NOWHERE, -1, blocks).int()[None, None].contiguous()
    whole = Selection(blocks, torch.full_like(blocks, FULL), torch.zeros(0, TILE, dtype=torch.int64), queries, keys, offset)
    return limited(whole, rule)


def _separated(selection: Selection, documents: torch.Tensor) -> Selection:
    """Only pairs of one document."""
    batch = selection.blocks.shape[0] if len(documents) == 1 else len(documents)
    if selection.blocks.shape[0] not in (1, batch):
        raise BadTensor(f"documents {list(documents.shape)} do not fit a pattern for a batch of {selection.blocks.shape[0]}")
    documents = documents.expand(batch, -1)
    if selection.tokens is None and int(documents.max()) <= 0:  # one document and padding
        return algebra.without_padding(selection, documents == 0)
    padded = torch.nn.functional.pad(documents, (0, selection.plain * TILE - selection.keys), value=-1)
    low, high = (reduce(padded.view(batch, -1, TILE), -1) for reduce in (torch.amin, torch.amax))
    blocks = selection.blocks.expand(batch, -1, -1, -1)
    own = (blocks >= 0) & (blocks < selection.plain)
    index = torch.where(own, blocks, 0).long()
    tile = (selection.offset // TILE + torch.arange(selection.tiles)).clamp(max=selection.plain - 1)
    picked = [one[torch.arange(batch)[:, None, None, None], index] for one in (low, high)]
    lows, highs = (one[:, tile][:, None, :, None] for one in (low, high))
    some = ~own | ((picked[0] <= highs) & (picked[1] >= lows) & (picked[1] >= 0))
    every = own & (picked[0] == picked[1]) & (lows == highs) & (picked[0] == lows) & (picked[0] >= 0)

    def same(owner: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        of_query = documents[owner[:, None, None], q.clamp(0, selection.keys - 1)]
        of_key = documents[owner[:, None, None], k.clamp(min=0)]
        return (of_query == of_key) & (of_key >= 0) & (k >= 0) & (q < selection.keys)

    return algebra.cut(selection, some, every, same)


def at_least(what: str, value: int, least: int = 1) -> None:
    """Raise ValueError for what is no whole number, or a smaller one."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"{what}: {value} is no whole number")
    if value < least:
        raise ValueError(f"{what}: {value} is too small; at least {least}")
