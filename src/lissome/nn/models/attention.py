"""Self-attention of a block: all pairs, or those of a sparse pattern. Both have the same weights, so one can take the other's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lissome.nn.attention.in_transformers import attention, dense
from lissome.nn.attention.learned import scorers
from lissome.nn.attention.written import parse
from lissome.nn.models.parts import Whole
from lissome.nn.models.positions import Angles, turned

_by_pattern: Any = torch.compiler.disable(attention)  # type: ignore[no-untyped-call]
"""A selection is made in plain code for each length, and the kernel takes addresses."""


@dataclass(frozen=True)
class _Sizes:
    """What the rooms of sparse attention read of a transformers model's config."""

    num_attention_heads: int
    num_key_value_heads: int
    lissome_attention: str | None


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) whose key heads may be shared by several query heads (Ainslie et al. 2023).

    Has what transformers' attention modules have (config, layer_idx, head_dim, is_causal), so that learned scorers are attached, fitted and saved alike.
    """

    def __init__(
        self, width: int, causal: bool, layer: int, heads: int, kv_heads: int | None, dim: int | None, bias: bool, out_bias: bool | None, pattern: str | None
    ):
        super().__init__()
        kv_heads = kv_heads or heads
        if dim is None and width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}; choose a divisor, or give the width of a head as `dim`")
        if heads % kv_heads:
            raise ValueError(f"{kv_heads} key heads do not divide {heads} heads; each key head serves the same number of them")
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim or width // heads
        self.head_dim, self.layer_idx, self.is_causal, self.pattern = self.dim, layer, causal, pattern
        self.config = _Sizes(heads, kv_heads, pattern)
        self.q_proj = nn.Linear(width, heads * self.dim, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads * self.dim, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * self.dim, bias=bias)
        self.o_proj = nn.Linear(heads * self.dim, width, bias=bias if out_bias is None else out_bias)

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None = None, angles: Angles | None = None) -> torch.Tensor:
        """x [batch, n, width], padding [batch, n] bool (True: a token) or None, angles of the positions [1, n, dim] -> [batch, n, width]."""
        batch, n, _ = x.shape
        q, k, v = (project(x).view(batch, n, -1, self.dim).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj))
        if angles is not None:
            q, k = turned(q, angles), turned(k, angles)
        if self.pattern is None:
            out = dense(q, k, v, padding, None, self.is_causal)
        else:
            out, _ = _by_pattern(self, q, k, v, padding)
        found: torch.Tensor = self.o_proj(out.reshape(batch, n, -1))
        return found

    def extra_repr(self) -> str:
        """What the weights do not show."""
        return f"heads={self.heads}, kv_heads={self.kv_heads}, causal={self.is_causal}, pattern={self.pattern!r}"


def full(
    width: int,
    causal: bool,
    layer: int,
    heads: Whole,
    kv_heads: Whole | None = None,
    dim: Whole | None = None,
    bias: bool = False,
    out_bias: bool | None = None,
) -> Attention:
    """Every pair. kv_heads: as many as heads by default. dim: width of a head. bias: of all projections; out_bias: of the last, if it differs."""
    return Attention(width, causal, layer, heads, kv_heads, dim, bias, out_bias, None)


def sparse(
    width: int,
    causal: bool,
    layer: int,
    pattern: str,
    heads: Whole,
    kv_heads: Whole | None = None,
    dim: Whole | None = None,
    bias: bool = False,
    out_bias: bool | None = None,
) -> Attention:
    """The pairs that a pattern shows, such as "window(512) | sink(64) | top_blocks(8)". Raises BadConfig for a text that is no pattern."""
    named = scorers(parse(pattern))
    made = Attention(width, causal, layer, heads, kv_heads, dim, bias, out_bias, pattern)
    if "indexer" in named:
        from lissome.nn.attention.indexer import Indexer

        made.indexer = Indexer(made.heads, made.kv_heads, made.dim)
    if "importance" in named:
        from lissome.nn.attention.importance import Importance

        made.importance = Importance(made.kv_heads, made.dim)
    return made
