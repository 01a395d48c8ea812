"""Many small feed-forward networks whose weights lie in one tensor a matrix, as transformers has them: an expert is one contiguous slab."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import nn
from torch.nn import functional

from lissome.nn.moe.config import Activation, MoEConfig
from lissome.nn.moe.dispatch import dispatch

ACTIVATIONS: Mapping[Activation, Callable[[torch.Tensor], torch.Tensor]] = MappingProxyType(
    {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "relu": functional.relu,
        "relu2": lambda x: functional.relu(x).square(),
    }
)


class FeedForward(nn.Module):
    """One dense network: down(act(gate x) * (up x)), or down(act(up x)). up: [2 neurons or neurons, width], the gate's rows first; down: [width, neurons]."""

    def __init__(self, width: int, neurons: int, config: MoEConfig):
        super().__init__()
        self.config = config
        rows = neurons * (2 if config.gated else 1)
        self.up = nn.Parameter(torch.empty(rows, width).normal_(std=width**-0.5))
        self.up_bias = nn.Parameter(torch.zeros(rows)) if config.biases else None
        self.down = nn.Parameter(torch.empty(width, neurons).normal_(std=neurons**-0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] -> [..., width]."""
        return functional.linear(activated(functional.linear(x, self.up, self.up_bias), self.config), self.down)


class Experts(nn.Module):
    """up: [experts, 2 neurons or neurons, width], the gate's rows first; down: [experts, width, neurons]."""

    def __init__(self, width: int, config: MoEConfig):
        super().__init__()
        self.config, self.num_experts = config, config.experts
        rows = config.neurons * (2 if config.gated else 1)
        self.up = nn.Parameter(torch.empty(config.experts, rows, width).normal_(std=width**-0.5))
        self.up_bias = nn.Parameter(torch.zeros(config.experts, rows)) if config.biases else None
        self.down = nn.Parameter(torch.empty(config.experts, width, config.neurons).normal_(std=config.neurons**-0.5))

    def forward(self, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Tokens x [n, width] through their experts (index, weight: [n, active]): [n, width]. Only chosen experts' weights are read."""
        # unbind and not up[e]: the gradient is then stacked once, where each up[e] would write one of the whole tensor's size
        up, down = self.up.unbind(0), self.down.unbind(0)
        bias = self.up_bias.unbind(0) if self.up_bias is not None else (None,) * self.num_experts

        def one(number: int, rows: torch.Tensor) -> torch.Tensor:
            return functional.linear(activated(functional.linear(rows, up[number], bias[number]), self.config), down[number])

        return dispatch(x, index, weight, self.num_experts, one)


def activated(sums: torch.Tensor, config: MoEConfig) -> torch.Tensor:
    """The neurons' values: sums [..., 2 neurons] with the gate first, or [..., neurons]."""
    act = ACTIVATIONS[config.activation]
    if not config.gated:
        return act(sums)
    gate, up = sums.chunk(2, -1)
    return act(gate) * up
