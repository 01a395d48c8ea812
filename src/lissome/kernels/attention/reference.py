"""The plain way: all scores, an exact mask, one softmax. Every other backend is held to it."""

from __future__ import annotations

import torch

from lissome.kernels.attention.selection import Selection


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection, scale: float) -> torch.Tensor:
    """Attention over what the selection shows, in at least float32 and at the cost of all pairs.

    q [batch, heads, queries, dim], k [batch, kv_heads, keys, dim], v [batch, kv_heads, keys, value_dim] -> [batch, heads, queries, value_dim] in q's type.
    A query that sees no key gives zeros.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[1] // k.shape[1]
    keys, values = (one.to(wide).repeat_interleave(group, 1) for one in (k, v))
    scores = (q.to(wide) @ keys.transpose(-1, -2)) * scale
    visible = selection.dense()
    weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), -1)
    return (torch.where(visible.any(-1, keepdim=True), weights, 0.0) @ values).to(q.dtype)
