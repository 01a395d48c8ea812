"""A layer of experts, one token and one expert after the other: what the sorted way is held to."""

from __future__ import annotations

import torch

from lissome.nn.moe.experts import ACTIVATIONS, Experts
from lissome.nn.moe.layer import MoE


def experts(layer: Experts, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As `Experts.forward`."""
    act, config, rows = ACTIVATIONS[layer.config.activation], layer.config, []
    for token, chosen, shares in zip(x, index, weight, strict=True):
        total = torch.zeros_like(token)
        for number, share in zip(chosen.tolist(), shares, strict=True):
            sums = layer.up[number] @ token + (layer.up_bias[number] if layer.up_bias is not None else 0)
            values = act(sums[: config.neurons]) * sums[config.neurons :] if config.gated else act(sums)
            total = total + share * (layer.down[number] @ values)
        rows.append(total)
    return torch.stack(rows) if rows else x.clone()


def moe(layer: MoE, x: torch.Tensor) -> torch.Tensor:
    """As `MoE.forward` on tokens x [n, width], for a layer whose experts are in float."""
    assert isinstance(layer.experts, Experts)
    if not len(x):
        return x.clone()
    routings = [layer.router(token[None]) for token in x]
    index, weight = (torch.cat([getattr(one, name) for one in routings]) for name in ("index", "weight"))
    out = experts(layer.experts, x, index, weight.to(x.dtype))
    if layer.shared is not None:
        out = out + torch.stack([layer.shared(token) for token in x])
    return out if layer.down_bias is None else out + layer.down_bias
