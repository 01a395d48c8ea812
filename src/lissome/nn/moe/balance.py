"""What keeps the experts' loads even in training: the layers' losses gathered, and the biases that need no loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from lissome.nn.moe.layer import MoE


def balancing_loss(module: nn.Module) -> torch.Tensor | None:
    """The sum of what the layers of experts in `module` add to the loss of the last forward pass, None where they add nothing; it can be read once."""
    found = []
    for layer in layers_of(module):
        if layer.auxiliary is not None:
            found.append(layer.auxiliary)
            layer.auxiliary = None  # its graph is not kept, and a copy of the module stays possible
    return torch.stack(found).sum() if found else None


@torch.no_grad()
def rebalance(module: nn.Module) -> None:
    """Nudge each expert's bias towards an even load by what was counted since the last time, and count anew.

    bias += rate * (mean load - load) / mean load, at most the rate: the auxiliary-loss-free balancing of Wang et al. 2024 (arXiv 2408.15664), whose own rule
    takes the sign of the error, as DeepSeek-V3 does. The sign's steps are as large in balance as out of it: small enough to rest, they do not arrive in a few
    hundred steps. Layers balanced in another way only count anew. Counts of several processes are summed.
    """
    for layer in layers_of(module):
        load = layer.load
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(load)
        if layer.config.balance == "bias" and bool(load.any()):
            mean = load.double().mean()
            layer.router.bias += layer.config.rate * ((mean - load) / mean).clamp(-1, 1).to(layer.router.bias.dtype)
        load.zero_()


def layers_of(module: nn.Module) -> Iterator[MoE]:
    """The layers of experts in a module, in its order."""
    return (one for one in module.modules() if isinstance(one, MoE))
