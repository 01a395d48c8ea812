"""Global tokens by what their own keys say, without any query: by rank, by a threshold, by the entropy of a key's features or by a learned score.

Where attention is causal nothing may depend on what comes later. A threshold does not, and neither does a rank among what lies before: a tile sees the
highest-scoring tokens of the blocks that end before it. Ranks and budgets are of one document: where several are packed in one row, each has its own.

SmolLM2-135M, 2,048 tokens, window(128) | sink(4) and 64 tokens by rank; mean share of dense attention's mass that is shown, 4 sequences not trained on: layer
2: 0.805 learned, 0.634 by entropy, 0.642 by lot; layer 9: 0.932, 0.780, 0.595; layer 23: 0.837, 0.780, 0.778. What is learned is worth its training; the
entropy of features finds something in some layers only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import nn

from lissome.core.errors import BadConfig, BadTensor
from lissome.kernels.attention.selection import TILE, Selection, tiles_of
from lissome.nn.attention.chosen import apart, beside, capped, each_document, entropy, positions_of, several, tile_documents
from lissome.nn.attention.indexer import divergence
from lissome.nn.attention.mass import left
from lissome.nn.attention.patterns import Pattern, at_least, of_tokens
from lissome.nn.attention.sight import Sight

TokenScorer = Callable[[torch.Tensor, Sight], torch.Tensor]
"""(keys [batch, kv_heads, n, dim], what the pattern looks at) -> a score of each [batch, kv_heads, n], which depends on no other key."""


def feature_entropy(keys: torch.Tensor, sight: Sight | None = None) -> torch.Tensor:
    """Entropy of the softmax over each key's features [..., dim] -> [...], in nats: at most log(dim), low where few features stand out."""
    return entropy(keys)


class Importance(nn.Module):
    """A linear score of a key, a weight vector for each key head: trained to say how much attention a token gets beyond what is shown (`importance_loss`)."""

    def __init__(self, kv_heads: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(kv_heads, dim))

    def forward(self, keys: torch.Tensor, sight: Sight | None = None) -> torch.Tensor:
        """Scores [batch, kv_heads, n] of keys [batch, kv_heads, n, dim]. Raises BadTensor for keys of another layer's shape."""
        if (keys.shape[1], keys.shape[3]) != tuple(self.weight.shape):
            heads, dim = self.weight.shape
            raise BadTensor(f"the importance was made for {heads} key heads of {dim}, and this layer has {keys.shape[1]} of {keys.shape[3]}")
        return torch.einsum("bhnd,hd->bhn", keys.detach().float(), self.weight.float())


def learned_importance(keys: torch.Tensor, sight: Sight) -> torch.Tensor:
    """What the layer's own `Importance` says. Raises BadConfig for a layer without one."""
    if sight.importance is None:
        raise BadConfig(
            "the pattern names a learned importance, and this layer has none",
            do="call use(model, pattern), which attaches one, or load_indexers(model, folder)",
        )
    return sight.importance(keys, sight)


@dataclass(frozen=True)
class TopTokens(Pattern):
    """The `count` tokens that score highest, for each batch and key head: global tokens by rank."""

    count: int
    scorer: TokenScorer = feature_entropy

    @property
    def name(self) -> str:  # type: ignore[override]
        """As it is written."""
        return f"top_tokens({self.count}, {self.scorer.__name__})"

    @torch.no_grad()
    def visits(self, sight: Sight) -> Selection:
        """Both ways: the highest-scoring of each document. Causal: for each tile, of the blocks that end before it."""
        scores = scored(self, self.scorer, sight)
        if not sight.causal:
            chosen = torch.zeros_like(scores, dtype=torch.bool)
            for own in apart(sight):
                best = scores.masked_fill(~own.to(scores.device), float("-inf")).topk(min(self.count, sight.keys), -1)
                chosen |= torch.zeros_like(chosen).scatter(2, best.indices, best.values > float("-inf"))
            return _visited(positions_of(chosen), sight)
        members = before_tiles(scores, self.count, sight)
        ever = torch.zeros(*scores.shape[:2], sight.keys + 1, dtype=torch.bool, device=scores.device)
        ever.scatter_(2, torch.where(members < 0, sight.keys, members).flatten(2), True)
        positions = positions_of(ever[..., : sight.keys])
        seen = (positions[:, :, None, :, None] == members[:, :, :, None, :]).any(-1)
        return of_tokens(_for_heads(positions, sight), sight, _for_heads(seen, sight))


def top_tokens(count: int, scorer: TokenScorer = feature_entropy) -> TopTokens:
    """The `count` highest-scoring tokens of each key head become global; all of them where there are fewer, as at a text's begin."""
    at_least("top_tokens", count)
    return TopTokens(count, scorer)


@dataclass(frozen=True)
class TokensAbove(Pattern):
    """Tokens that score at least a threshold, for each batch and key head; of more than `most` of a document, the first ones."""

    word: str
    threshold: float
    most: int
    scorer: TokenScorer

    @property
    def name(self) -> str:  # type: ignore[override]
        """As it is written."""
        return f"{self.word}({self.threshold!r}, {self.most})"

    @torch.no_grad()
    def visits(self, sight: Sight) -> Selection:
        """Blocks of these tokens, visited by every tile."""
        return _visited(positions_of(capped(scored(self, self.scorer, sight) >= self.threshold, self.most, sight)), sight)


def entropy_tokens(threshold: float, most: int = TILE) -> TokensAbove:
    """Tokens whose key has a `feature_entropy` of at least `threshold` nats become global, at most `most` of each key head (`threshold_for`)."""
    return _above("entropy_tokens", threshold, most, feature_entropy)


def learned_tokens(threshold: float, most: int = TILE) -> TokensAbove:
    """Tokens whose `learned_importance` is at least `threshold` become global, at most `most` of each key head."""
    return _above("learned_tokens", threshold, most, learned_importance)


def threshold_for(scores: torch.Tensor, count: int) -> float:
    """The threshold that `count` of the scores [..., keys] reach on average: what is global then depends on the token and on nothing after it."""
    if not 1 <= count <= scores.shape[-1]:
        raise ValueError(f"threshold_for: {count} tokens of {scores.shape[-1]}; at least 1 and no more than there are")
    ordered = scores.float().flatten().sort(descending=True).values
    return float(ordered[count * (scores.numel() // scores.shape[-1]) - 1])


def scored(pattern: Pattern, scorer: TokenScorer, sight: Sight) -> torch.Tensor:
    """Scores of all keys [batch, kv_heads, keys], -inf for padding."""
    if sight.k is None:
        raise ValueError(f"{pattern.name} chooses by keys: give them")
    name: Hashable = scorer
    scores = sight.of_keys(name, lambda keys, _: scorer(keys, dataclasses.replace(sight, known=None)), 1)
    return scores if sight.documents is None else scores.masked_fill((sight.documents < 0)[:, None], float("-inf"))


def before_tiles(scores: torch.Tensor, count: int, sight: Sight) -> torch.Tensor:
    """What `so_far` finds for the tiles of queries; of several documents, for each tile among the keys of the one that it chooses for."""
    tiles, first = tiles_of(sight.queries, sight.offset), sight.offset // TILE
    if sight.documents is None or not several(sight.documents):
        return so_far(scores, count, tiles, first)
    found = torch.full((*scores.shape[:2], tiles, count), -1, dtype=torch.int64, device=scores.device)
    for document, some, own in each_document(tile_documents(sight)):
        alone = scores.masked_fill((sight.documents != document)[:, None], float("-inf"))
        found[:, :, some] = torch.where(own[:, None, :, None], so_far(alone, count, some.stop - some.start, first + some.start), found[:, :, some])
    return found


def so_far(scores: torch.Tensor, count: int, tiles: int, first: int) -> torch.Tensor:
    """Positions of the `count` highest scores of the blocks before each of `tiles` tiles from number `first` on [b, h, tiles, count]; -1 where there are fewer.

    Of equal scores the earlier one, in one go or block by block.
    """
    begin = scores[..., : first * TILE].sort(dim=-1, descending=True, stable=True)
    best, where = begin.values[..., :count], begin.indices[..., :count]
    found = []
    for tile in range(first, first + tiles):
        found.append(nn.functional.pad(torch.where(best == float("-inf"), -1, where), (0, count - where.shape[-1]), value=-1))
        block = scores[..., tile * TILE : (tile + 1) * TILE]
        place = torch.arange(tile * TILE, tile * TILE + block.shape[-1], device=scores.device).expand(block.shape)
        ranked = torch.cat([best, block], -1).sort(dim=-1, descending=True, stable=True)
        best, where = ranked.values[..., :count], torch.cat([where, place], -1).gather(-1, ranked.indices[..., :count])
    return torch.stack(found, 2)


def importance_loss(importance: nn.Module, sight: Sight, rows: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """KL divergence of the attention that queries pay keys not shown yet (`sight.shown`) from the softmax of the keys' scores, in nats, each normalised.

    rows: [n] int64, indices of the queries that are looked at; mean over batch, key heads (the heads of a group summed) and those of them that pay any.
    """
    assert sight.q is not None and sight.k is not None
    with torch.no_grad():
        weights = left(sight, rows, scale)
        weights = _of_groups(weights, sight.k.shape[1])
        whole = weights.sum(-1, keepdim=True)
        target = weights / whole.clamp(min=torch.finfo(torch.float32).tiny)
        out = left(dataclasses.replace(sight, q=torch.zeros_like(sight.q)), rows)  # where an even attention could fall
        out = _of_groups(out, sight.k.shape[1]) == 0
        chosen = ((~out).sum(-1) > 1) & (whole[..., 0] > torch.finfo(torch.float32).tiny)
    scores = importance(sight.k)[:, :, None].expand(target.shape)
    return divergence(target, scores, out, chosen)


def _above(word: str, threshold: float, most: int, scorer: TokenScorer) -> TokensAbove:
    at_least(word, most)
    if not math.isfinite(threshold):
        raise ValueError(f"{word}: {threshold} is no threshold")
    return TokensAbove(word, float(threshold), most, scorer)


def _of_groups(weights: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[batch, heads, rows, keys] -> [batch, kv_heads, rows, keys]: the heads of each group summed."""
    batch, heads, rows, keys = weights.shape
    return weights.view(batch, kv_heads, heads // kv_heads, rows, keys).sum(2)


def _visited(positions: torch.Tensor, sight: Sight) -> Selection:
    """Tokens of each key head [b, kv_heads, extra], visited by every tile that holds a query of their document."""
    near = beside(positions, sight)
    return of_tokens(_for_heads(positions, sight), sight, None if near is None else _for_heads(near, sight))


def _for_heads(found: torch.Tensor, sight: Sight) -> torch.Tensor:
    """[batch, kv_heads, ...] for the query heads of each group."""
    return found.repeat_interleave(max(1, sight.heads // found.shape[1]), 1)
