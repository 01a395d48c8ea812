"""Experts whose weights are codes of 4 bits in the kernel's layout: a token reads its own experts' bytes and no others."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional

from lissome.kernels.decoder.native import Pool, multiply
from lissome.kernels.decoder.packed import Bits, Codes, Packed, pack, packed_bytes
from lissome.kernels.decoder.reference import dense
from lissome.kernels.library import library
from lissome.nn.moe.config import MoEConfig
from lissome.nn.moe.dispatch import dispatch
from lissome.nn.moe.experts import activated

BITS: Bits = 4


class PackedExperts(nn.Module):
    """As `Experts`, for inference alone. up, down: bytes [experts, ...] of one packed matrix each; see `kernels.decoder.packed`."""

    up: torch.Tensor
    down: torch.Tensor

    def __init__(self, width: int, config: MoEConfig):
        super().__init__()
        assert config.group is not None
        self.config, self.num_experts = config, config.experts
        rows = config.neurons * (2 if config.gated else 1)
        self.shapes = {"up": (rows, width), "down": (width, config.neurons)}
        for name, (height, columns) in self.shapes.items():
            self.register_buffer(name, torch.zeros(config.experts, packed_bytes(height, columns, BITS, config.group), dtype=torch.uint8))
        self.up_bias = nn.Parameter(torch.zeros(config.experts, rows)) if config.biases else None

    @property
    def weights(self) -> int:
        """How many weights the codes stand for."""
        return self.num_experts * sum(rows * columns for rows, columns in self.shapes.values())

    def fill(self, number: int, up: Codes, down: Codes) -> None:
        """Give an expert its weights."""
        self.up[number], self.down[number] = (torch.from_numpy(pack(one).data) for one in (up, down))

    def matrix(self, name: str, number: int) -> Packed:
        """A matrix of an expert, where it lies."""
        assert self.config.group is not None
        return Packed(getattr(self, name)[number].cpu().numpy(), *self.shapes[name], BITS, self.config.group)

    def forward(self, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Tokens x [n, width] through their experts (index, weight: [n, active]): [n, width]."""

        def one(number: int, rows: torch.Tensor) -> torch.Tensor:
            sums = product(self.matrix("up", number), rows)
            if self.up_bias is not None:
                sums = sums + self.up_bias[number]
            return product(self.matrix("down", number), activated(sums, self.config))

        return dispatch(x, index, weight, self.num_experts, one)


def product(matrix: Packed, x: torch.Tensor) -> torch.Tensor:
    """x [n, columns] times the transposed matrix: by the kernel where it was built and nothing is trained, else in torch."""
    if library().handle is not None and x.device.type == "cpu" and not (torch.is_grad_enabled() and x.requires_grad):
        return torch.from_numpy(multiply(matrix, x.detach().float().numpy(), _pool(torch.get_num_threads())))
    return functional.linear(x.float(), dense(matrix).to(x.device))


@functools.lru_cache(maxsize=4)
def _pool(threads: int) -> Pool:
    return Pool(threads)
