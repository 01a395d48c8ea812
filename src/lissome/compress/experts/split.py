"""One feed-forward network as a layer of experts, and its router fitted to what the experts give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lissome.compress.experts.cluster import clusters
from lissome.compress.experts.config import SplitConfig
from lissome.compress.experts.find import Dense
from lissome.nn.moe.config import MoEConfig
from lissome.nn.moe.experts import Experts, FeedForward
from lissome.nn.moe.layer import MoE

MOST = 2**27
"""Numbers of all experts' outputs that are held at once."""


@dataclass(frozen=True)
class Fit:
    """How close a layer of experts comes to its dense network: |difference| / |dense output| over calibration texts that nothing was fitted on.

    router: with the experts it chooses; largest: with those whose outputs are largest, which only the dense network knows; random: with any.
    agreement: share of the experts with the largest outputs that the router chose. scale: by which the experts' sum is multiplied.
    """

    name: str
    router: float
    largest: float
    random: float
    agreement: float
    scale: float


@torch.no_grad()
def split(name: str, dense: Dense, x: torch.Tensor, held_out: torch.Tensor, config: SplitConfig) -> tuple[MoE, Fit]:
    """The layer of experts that stands for `dense`, with its router; x, held_out: calibration inputs [n, width] to fit on and to judge by, in any order."""
    parts, always = clusters(dense, dense.values(x), config)
    layer = layer_of(dense, parts, always, config)
    some = max(1, MOST // (config.experts * dense.width))
    outputs = expert_outputs(layer, x[:some])
    norms = [outputs.norm(dim=-1), *(expert_outputs(layer, rows).norm(dim=-1) for rows in torch.split(x[some:], some))]
    weight, offset = ridge(x, torch.cat(norms), config.ridge)
    layer.router.weight.copy_(weight)
    assert layer.router.offset is not None
    layer.router.offset.copy_(offset)
    if config.rescale and config.active < config.experts:
        chosen, whole = _sums(outputs, layer.router(x[:some]).index), outputs.sum(1)
        scale = float((chosen * whole).sum() / chosen.square().sum().clamp_min(1e-30))
        if scale > 0:
            layer.config = layer.router.config = layer.config.model_copy(update={"scale": scale})
    del outputs
    return layer, _fit(name, layer, held_out[:some])


@torch.no_grad()
def layer_of(dense: Dense, parts: torch.Tensor, always: torch.Tensor, config: SplitConfig) -> MoE:
    """The dense network's neurons as experts (parts: [experts, neurons]) and the shared ones; all experts together are the network itself."""
    biases = any(one is not None and one.bias is not None for one in (dense.up, dense.gate, dense.down))
    made = MoEConfig(
        experts=config.experts,
        active=config.active,
        neurons=parts.shape[1],
        shared=len(always),
        activation=dense.activation,
        gated=dense.gate is not None,
        biases=biases,
        offset=True,
        weights="ones",
    )
    layer = MoE(dense.width, made).to(dense.down.weight.device, dense.down.weight.dtype)
    assert isinstance(layer.experts, Experts)
    for number, part in enumerate(parts):
        _give(layer.experts.up[number], layer.experts.down[number], None if layer.experts.up_bias is None else layer.experts.up_bias[number], dense, part)
    if layer.shared is not None:
        assert isinstance(layer.shared, FeedForward)
        _give(layer.shared.up, layer.shared.down, layer.shared.up_bias, dense, always)
    if layer.down_bias is not None and dense.down.bias is not None:
        layer.down_bias.copy_(dense.down.bias)
    return layer.train(dense.down.training)


def _give(up: torch.Tensor, down: torch.Tensor, bias: torch.Tensor | None, dense: Dense, part: torch.Tensor) -> None:
    """Copy the neurons `part` of the dense network."""
    rows = [one for one in (dense.gate, dense.up) if one is not None]
    up.copy_(torch.cat([one.weight[part] for one in rows]))
    down.copy_(dense.down.weight[:, part])
    if bias is not None:
        bias.copy_(torch.cat([one.weight.new_zeros(len(part)) if one.bias is None else one.bias[part] for one in rows]))


def expert_outputs(layer: MoE, x: torch.Tensor) -> torch.Tensor:
    """What each routed expert gives for each token [n, experts, width], unscaled."""
    one = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    return torch.stack([layer.experts(x, torch.full((len(x), 1), number, device=x.device), one) for number in range(layer.config.experts)], 1)


def ridge(x: torch.Tensor, targets: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight [experts, width], offset [experts]) of the linear map from x that comes closest to the targets, in units of their deviation, in float64."""
    x, targets = x.double(), targets.double()
    middle, centre = x.mean(0), targets.mean(0)
    unit = targets.std().clamp_min(1e-12) if targets.numel() > 1 else targets.new_ones(())
    inputs = x - middle
    gram = inputs.T @ inputs
    gram.diagonal().add_(strength * gram.diagonal().mean() + 1e-12)
    weight = torch.linalg.solve(gram, inputs.T @ (targets - centre)).T / unit
    return weight, centre / unit - weight @ middle


def _sums(outputs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """What the experts `index` [n, k] give together; outputs: [n, experts, width]."""
    return torch.take_along_dim(outputs, index[..., None], 1).sum(1)


def _fit(name: str, layer: MoE, x: torch.Tensor) -> Fit:
    config, outputs = layer.config, expert_outputs(layer, x)
    whole = outputs.sum(1)
    always = layer.shared(x) if isinstance(layer.shared, nn.Module) else 0
    size = (whole + always).norm().clamp_min(1e-30)
    chosen = layer.router(x).index
    best = outputs.norm(dim=-1).sort(dim=1, descending=True, stable=True).indices[:, : config.active]
    generator = torch.Generator().manual_seed(0)
    anyone = torch.stack([torch.randperm(config.experts, generator=generator)[: config.active] for _ in range(len(x))]).to(x.device)
    router, largest, chance = (float((config.scale * _sums(outputs, index) - whole).norm() / size) for index in (chosen, best, anyone))
    agreement = float((chosen[:, :, None] == best[:, None]).any(-1).double().mean())
    return Fit(name, router, largest, chance, agreement, config.scale)
