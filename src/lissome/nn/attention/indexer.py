"""A learned scorer of blocks: few small heads that say where dense attention would look, trained to say so (`indexer_loss`).

The lightning indexer of DeepSeek-V3.2 ("DSA", DeepSeek-AI 2025), sum_i w_i ReLU(q_i . k), at the granularity of blocks: a small key stands for a stretch of
keys, and a block scores by the log of the sum of exp over its stretches, so that exp of it is to attention's mass on the block what exp of a score is to a
key's weight. It reads a layer's queries and keys, and no gradient leaves it for them: the language-model loss never touches it, nor it the model.

SmolLM2-135M, 2,048 tokens, window(128) | sink(4) and 4 blocks; mean share of dense attention's mass that is shown, 100 steps of one sequence, 4 sequences not
trained on: layer 2: 0.780 (pooled keys 0.756, oracle 0.792), layer 9: 0.865 (0.679, 0.881), layer 23: 0.869 (0.867, 0.888). The best stretch instead of the
sum: 0.767, 0.861, 0.850. Stretches of 16 keys instead of 1: 0.762, 0.720, 0.870; keys after their rotation do not average well.
"""

from __future__ import annotations

import torch
from torch import nn

from lissome.core.errors import BadConfig, BadTensor
from lissome.kernels.attention.selection import TILE, blocks_of
from lissome.nn.attention.chosen import block_scores, hidden, once_a_tile, real, tile_documents
from lissome.nn.attention.mass import block_mass, left
from lissome.nn.attention.sight import Sight

FLOATS = 1 << 23
"""How many floats of scores are held at once where no gradient is asked for."""


class Indexer(nn.Module):
    """Scores of blocks for every tile of queries and head; a `Scorer` for `top_blocks`.

    heads, kv_heads, dim: of the layer. index_heads, index_dim: how many small heads each head has and how wide they are. span: keys that share one small
    key, a divisor of 64; 64 / span small keys of index_dim floats are kept for each block and key head.
    """

    __name__ = "indexer"

    def __init__(self, heads: int, kv_heads: int, dim: int, *, index_heads: int = 2, index_dim: int = 32, span: int = 1) -> None:
        if min(heads, kv_heads, dim, index_heads, index_dim) < 1 or heads % kv_heads:
            asked = f"an indexer for {heads} heads, {kv_heads} key heads of {dim}, with {index_heads} small heads of {index_dim}"
            raise BadConfig(f"{asked}, cannot be made", expected="at least 1 of each, and heads a multiple of key heads")
        if span < 1 or TILE % span:
            raise BadConfig(f"a span of {span} keys does not divide a block of {TILE}", expected="1, 2, 4, 8, 16, 32 or 64")
        super().__init__()
        self.heads, self.kv_heads, self.dim, self.index_heads, self.index_dim, self.span = heads, kv_heads, dim, index_heads, index_dim, span
        self.key = nn.Parameter(torch.empty(kv_heads, dim, index_dim))
        self.query = nn.Parameter(torch.empty(heads, dim, index_heads, index_dim))
        self.gate = nn.Parameter(torch.empty(heads, dim, index_heads))
        self.bias = nn.Parameter(torch.empty(heads, index_heads))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew: scores that are roughly q . k.

        Small keys are the keys seen from a random side, and queries are seen from the same one, by every other small head from behind: as
        ReLU(x) - ReLU(-x) = x, none of the heads is dead where all products are of one sign.
        """
        width = max(self.dim, self.index_dim)
        side = torch.linalg.qr(torch.randn(width, width))[0][: self.dim, : self.index_dim].to(self.key)
        signs = torch.tensor([1.0, -1.0] * self.index_heads)[: self.index_heads].to(self.key)
        self.key.copy_(side.expand_as(self.key))
        self.query.copy_(side[None, :, None] * signs[:, None] + 0.1 * self.dim**-0.5 * torch.randn_like(self.query))
        self.gate.zero_()
        self.bias.copy_(signs * self.dim**-0.5 / -(-self.index_heads // 2))

    def forward(self, queries: torch.Tensor, sight: Sight) -> torch.Tensor:
        """Scores [batch, heads, tiles, blocks] for the queries [batch, heads, tiles, dim] that tiles choose by.

        Raises BadTensor for queries or keys that are not of the layer it was made for.
        """
        return once_a_tile(self, queries, sight, lambda: self._of_tiles(queries, sight))

    def _of_tiles(self, queries: torch.Tensor, sight: Sight) -> torch.Tensor:
        assert sight.k is not None
        made, found = (self.heads, self.kv_heads, self.dim), (queries.shape[1], sight.k.shape[1], queries.shape[3])
        if made != found:
            said = [f"{heads} heads and {kv_heads} key heads of {dim}" for heads, kv_heads, dim in (made, found)]
            raise BadTensor(f"the indexer was made for {said[0]}, and this layer has {said[1]}", do="attach an indexer of the layer's own sizes")
        small = sight.of_keys(self, self.small)
        absent = self._absent(sight, small.shape[2])
        q = queries.detach().float()
        step = q.shape[2]
        if not torch.is_grad_enabled():
            step = max(1, FLOATS // max(1, q.shape[0] * self.heads * self.index_heads * small.shape[2] * small.shape[3]))
        return torch.cat([self._scores(part, small, absent) for part in torch.split(q, max(1, step), 2)], 2)

    def small(self, keys: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        """Small keys [batch, kv_heads, blocks, 64 / span, index_dim] of keys [batch, kv_heads, keys, dim]; of those `present` [batch, keys] bool, if given."""
        batch, kv_heads, length, _ = keys.shape
        found = keys.detach().float() @ self.key.float()
        if present is None:
            present = torch.ones(1, length, dtype=torch.bool, device=keys.device)
        elif self.span > 1:  # a key that is not there is not looked at where it stands alone (`_absent`)
            found = found * present[:, None, :, None]
        stretches = blocks_of(length) * TILE // self.span
        found = nn.functional.pad(found, (0, 0, 0, -length % TILE)).view(batch, kv_heads, stretches, self.span, self.index_dim)
        counts = nn.functional.pad(present, (0, -length % TILE)).view(len(present), 1, stretches, self.span, 1).sum(3).clamp(min=1)
        return (found.sum(3) / counts).view(batch, kv_heads, blocks_of(length), TILE // self.span, self.index_dim)

    def _absent(self, sight: Sight, blocks: int) -> torch.Tensor:
        """Stretches without a key [b, 1, 1, 1, blocks, 64 / span]."""
        assert sight.k is not None
        there = torch.zeros(1, sight.keys, dtype=torch.int64, device=sight.k.device) if sight.documents is None else sight.documents
        stretches = nn.functional.pad(real(there, self.span), (0, blocks * TILE // self.span))[:, : blocks * TILE // self.span]
        return ~stretches.view(len(there), 1, 1, 1, blocks, TILE // self.span)

    def _scores(self, q: torch.Tensor, small: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
        """Scores of some tiles [batch, heads, tiles, blocks]."""
        batch, _, tiles, _ = q.shape
        blocks, each = small.shape[2:4]
        seen = torch.einsum("bhtd,hdie->bhtie", q, self.query.float())
        weights = torch.einsum("bhtd,hdi->bhti", q, self.gate.float()) + self.bias.float()[:, None]
        grouped = seen.reshape(batch, self.kv_heads, -1, self.index_dim)
        dots = (grouped @ small.flatten(2, 3).transpose(-1, -2)).relu()
        dots = dots.view(batch, self.heads, tiles, self.index_heads, blocks * each)
        scores = (weights[..., None] * dots).sum(3).view(batch, self.heads, tiles, blocks, each)
        return scores.masked_fill(absent[:, 0], float("-inf")).logsumexp(-1)


def indexer(queries: torch.Tensor, sight: Sight) -> torch.Tensor:
    """A block's score is what the layer's own `Indexer` says (DeepSeek-V3.2, 2025).

    Raises BadConfig for a layer without one.
    """
    if sight.indexer is None:
        raise BadConfig(
            "the pattern names an indexer, and this layer has none", do="call use(model, pattern), which attaches one, or load_indexers(model, folder)"
        )
    return sight.indexer(queries, sight)


def indexer_loss(scorer: nn.Module, sight: Sight, rows: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """KL divergence of dense attention's mass per block from the softmax of the indexer's scores, in nats: mean over batch, heads and queries.

    rows: [n] int64, indices of the queries that are looked at. Each is compared with what its tile chooses by, over the blocks that the tile may choose: before
    it where attention is causal, not shown yet (`sight.shown`), not padding. Masses are normalised to a sum of 1 (L1), so that every query counts alike.
    scale: of attention's scores, 1 / sqrt(dim) by default. A query without a choice, or of another document than its tile chooses for, is left out. 0 where
    there is none at all.
    """
    with torch.no_grad():
        mass = block_mass(left(sight, rows, scale))
        tiles, which = torch.unique((sight.offset % TILE + rows) // TILE, return_inverse=True)
        out = hidden(sight, mass.shape[-1])[:, :, tiles][:, :, which]
        mass = mass.masked_fill(out, 0.0)
        whole = mass.sum(-1, keepdim=True)
        chosen = ((~out).sum(-1) > 1) & (whole[..., 0] > torch.finfo(torch.float32).tiny)
        if sight.documents is not None:
            chosen = chosen & (tile_documents(sight)[:, tiles][:, which] == sight.documents[:, sight.offset + rows])[:, None]
        target = mass / whole.clamp(min=torch.finfo(torch.float32).tiny)
    scores = block_scores(scorer, sight, tiles)[:, :, which]
    return divergence(target, scores, out, chosen)


def divergence(target: torch.Tensor, scores: torch.Tensor, out: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Mean KL(target || softmax(scores)) over the rows `chosen`; target, scores [..., n], `out` where there is nothing to score."""
    logs = scores.masked_fill(out, torch.finfo(scores.dtype).min).log_softmax(-1)
    apart = (torch.xlogy(target, target) - target * logs).sum(-1)
    return torch.where(chosen, apart, 0.0).sum() / chosen.sum().clamp(min=1)
