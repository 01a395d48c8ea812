"""How to train towards zeros, as data. Importing this needs no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator, model_validator

from lissome.core.config import Config
from lissome.train.config import TrainConfig


@dataclass(frozen=True)
class Pattern:
    """Where zeros may lie in a weight seen as a matrix [outputs, inputs].

    kind "unstructured": anywhere. "n:m": of every `m` weights along the inputs at most `n` are not zero. "block": whole blocks of `rows` x `columns`.
    """

    kind: Literal["unstructured", "n:m", "block"]
    n: int = 0
    m: int = 0
    rows: int = 1
    columns: int = 1


def parse_pattern(text: str) -> Pattern:
    """ "unstructured", "2:4" (two of four stay), or "16x1" (blocks of 16 outputs by 1 input). Raises ValueError for anything else."""
    if text == "unstructured":
        return Pattern("unstructured")
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        n, m = int(found[1]), int(found[2])
        if not 0 < n < m:
            raise ValueError(f'"{text}" keeps {n} of {m} weights; an N:M pattern needs 0 < N < M, such as "2:4"')
        return Pattern("n:m", n=n, m=m)
    if found := re.fullmatch(r"(\d+)x(\d+)", text):
        rows, columns = int(found[1]), int(found[2])
        if rows * columns < 2:
            raise ValueError(f'"{text}" is no block; write "16x1" or "32x32", or "unstructured"')
        return Pattern("block", rows=rows, columns=columns)
    raise ValueError(f'"{text}" is not a pattern; write "unstructured", "2:4" or "16x1"')


class SparseConfig(Config):
    """Which weights become zero, and when.

    sparsity: share of zeros at the end; an N:M pattern sets its own, 1 - N/M. pattern: "unstructured", N:M ("2:4" keeps two of every four along the
    inputs), or blocks of outputs x inputs ("16x1", "32x32").
    saliency: what is kept: the largest "magnitude", or by "gradient" the weights that training moves away from zero, the running sum of
    -weight * gradient (movement pruning, Sanh et al. 2020), which also lets weights come back.
    schedule: how the share rises: "cubic" (Zhu and Gupta 2017), "step" (in `stages` equal stages), or "constant" (all at once).
    begin, end: shares of the run at which it rises; after `end` the zeros are fixed and the rest of the run recovers. every: steps between changes.
    scope: "layer" gives each layer the same share; "global" compares all layers' saliency, and a layer keeps at least 2 % of its weights.
    skip: layers left dense, as shell patterns of their names ("*.pooler.*"). least: layers with fewer weights are left dense too.
    """

    sparsity: float = Field(default=0.8, gt=0, lt=1)
    pattern: str = "unstructured"
    saliency: Literal["magnitude", "gradient"] = "magnitude"
    schedule: Literal["cubic", "step", "constant"] = "cubic"
    stages: int = Field(default=4, ge=1)
    begin: float = Field(default=0.05, ge=0, lt=1)
    end: float = Field(default=0.7, gt=0, le=1)
    every: int = Field(default=10, ge=1)
    scope: Literal["layer", "global"] = "layer"
    skip: tuple[str, ...] = ()
    least: int = Field(default=1024, ge=0)

    @field_validator("pattern")
    @classmethod
    def _known(cls, value: str) -> str:
        parse_pattern(value)
        return value

    @model_validator(mode="after")
    def _rises(self) -> SparseConfig:
        if self.begin >= self.end:
            raise ValueError(f"begin ({self.begin}) must come before end ({self.end})")
        if self.scope == "global" and self.shape.kind == "n:m":
            raise ValueError('an N:M pattern gives every layer the same share, so scope "global" means nothing with it')
        return self

    @property
    def shape(self) -> Pattern:
        """The pattern, parsed."""
        return parse_pattern(self.pattern)

    @property
    def target(self) -> float:
        """Share of zeros at the end."""
        return 1 - self.shape.n / self.shape.m if self.shape.kind == "n:m" else self.sparsity

    def share(self, done: float) -> float:
        """Share of zeros when `done` (0..1) of the run is over: 0 before `begin`, `target` from `end` on, never falling."""
        part = (done - self.begin) / (self.end - self.begin)
        if part < 0:
            return 0.0
        if part >= 1 or self.schedule == "constant":
            return self.target
        if self.schedule == "cubic":
            return self.target * (1 - (1 - part) ** 3)
        return self.target * math.floor(part * self.stages + 1e-9) / self.stages


class SparseTaskConfig(Config):
    """How to train towards zeros on a task's train split. size: examples per batch."""

    sparse: SparseConfig = SparseConfig()
    train: TrainConfig = TrainConfig(epochs=3, lr=1e-4)
    size: int = Field(default=32, ge=1)
