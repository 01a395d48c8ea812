"""How a model knows where a token stands: a learned table, rotation of queries and keys, or not at all.

A positions part has forward(x [batch, n, width]) -> x with the positions added, and angles(n, dim, device) -> (cosine, sine) [n, dim] or None.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from lissome.core.errors import BadTensor
from lissome.nn.models.parts import Whole

Angles = tuple[torch.Tensor, torch.Tensor]
Positive = Annotated[float, Field(gt=0)]


class Positions(nn.Module):
    """Knows the most positions there are."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [batch, n, width] as it is. Raises BadTensor for more than `length` positions."""
        if not torch.compiler.is_compiling() and x.shape[1] > self.length:
            raise BadTensor(f"{x.shape[1]} positions are more than the model's {self.length}", do="cut the input, or build the model with a larger `length`")
        return x

    def angles(self, n: int, dim: int, device: torch.device) -> Angles | None:
        """None: queries and keys are not turned."""
        return None


class Learned(Positions):
    """A learned vector for each place (Gehring et al. 2017)."""

    def __init__(self, width: int, length: int):
        super().__init__(length)
        self.table = nn.Embedding(length, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [batch, n, width] + the vectors of places 0 to n - 1."""
        x = super().forward(x)
        return x + self.table.weight[: x.shape[1]]


class Rotary(Positions):
    """Queries and keys turned by angles that grow with the place (Su et al. 2021); halves are turned, as in Llama.

    base: of the wavelengths. scaling: "linear" slows all angles by `factor` (Chen et al. 2023); "llama3" slows only waves longer than `original` / `low`
    positions, those shorter than `original` / `high` not at all and those between by degrees (Llama 3.1).
    """

    def __init__(
        self,
        length: int,
        base: Positive = 10000.0,
        scaling: Literal["none", "linear", "llama3"] = "none",
        factor: Positive = 1.0,
        low: Positive = 1.0,
        high: Positive = 4.0,
        original: Whole = 8192,
    ):
        super().__init__(length)
        if scaling == "llama3" and high <= low:
            raise ValueError(f"high ({high}) must be above low ({low})")
        self.base, self.scaling, self.factor, self.low, self.high, self.original = base, scaling, factor, low, high, original

    def angles(self, n: int, dim: int, device: torch.device) -> Angles:
        """Cosine and sine [n, dim] of places 0 to n - 1, float32, both halves alike. Raises BadTensor for heads of odd width."""
        if dim % 2:
            raise BadTensor(f"heads of width {dim} cannot be turned: rotation takes pairs", do="choose heads of even width")
        rates = 1.0 / self.base ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
        turns = torch.arange(n, dtype=torch.float32, device=device)[:, None] * self._slowed(rates)
        turns = torch.cat((turns, turns), -1)
        return turns.cos(), turns.sin()

    def extra_repr(self) -> str:
        """What the weights do not show."""
        return f"base={self.base}, scaling={self.scaling}, factor={self.factor}, low={self.low}, high={self.high}, original={self.original}"

    def _slowed(self, rates: torch.Tensor) -> torch.Tensor:
        if self.scaling == "none":
            return rates
        if self.scaling == "linear":
            return rates / self.factor
        waves = 2 * math.pi / rates
        share = ((self.original / waves - self.low) / (self.high - self.low)).clamp(0, 1)
        return rates / self.factor * (1 - share) + rates * share


class Nowhere(Positions):
    """No positions; a causal model can still tell them from what it sees (Haviv et al. 2022)."""


def turned(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """x [batch, heads, n, dim] turned by angles [n, dim] or [1, n, dim]: (a, b) -> (a cos - b sin, b cos + a sin), a and b its halves."""
    cosine, sine = (one.to(x.dtype) for one in angles)
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine
