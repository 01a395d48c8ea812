"""How to train, as data. Importing this needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lissome.core.config import Config

Precision = Literal["fp32", "bf16", "auto"]
Schedule = Literal["linear", "cosine", "constant"]
Optimizer = Literal["adamw", "adam", "sgd", "rmsprop", "adafactor"]


class TrainConfig(Config):
    """How to train a module.

    epochs or steps: how long; a step is one update of the weights. Neither means one epoch.
    lr: peak learning rate. schedule: what follows the warm-up: linear or cosine to zero, or constant. warmup: share of the steps over which lr rises from 0.
    weight_decay: of matrices only; biases and normalisation weights have none. optimizer_options: passed to torch, such as {"momentum": 0.9}.
    grad_clip: largest norm of the whole gradient, or None. accumulation: batches per step, equal to one batch of their union.
    precision: "bf16" is torch's autocast with float32 weights; "auto" times both for a few steps and takes bf16 where it pays. A run is repeatable only
    with the same precision, so name it where that matters more than speed.
    checkpoint_every: "60s" or a number of steps. spend: most seconds, over all resumptions; then the run stops with what it has.
    """

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    schedule: Schedule = "linear"
    warmup: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    optimizer: Optimizer = "adamw"
    optimizer_options: Mapping[str, Any] = {}
    grad_clip: float | None = Field(default=1.0, gt=0)
    accumulation: int = Field(default=1, ge=1)
    precision: Precision = "auto"
    seed: int = Field(default=0, ge=0)
    checkpoint_every: int | str = "60s"
    spend: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self

    @field_validator("checkpoint_every")
    @classmethod
    def _interval(cls, value: int | str) -> int | str:
        if isinstance(value, str) and not re.fullmatch(r"\d+(\.\d+)?s", value):
            raise ValueError('give seconds as "60s", or a number of steps')
        if isinstance(value, int) and value < 1:
            raise ValueError("a checkpoint every 0 steps cannot be written; give at least 1")
        return value

    def due(self, seconds: float, steps: int) -> bool:
        """Whether a checkpoint is due, `seconds` and `steps` after the last one."""
        if isinstance(self.checkpoint_every, int):
            return steps >= self.checkpoint_every
        return seconds >= float(self.checkpoint_every[:-1])


class AdaptiveConfig(Config):
    """When a layer's arithmetic changes while it trains.

    window: steps whose gradients are averaged. A layer's change between two windows is |a - b| / (|a| + |b|) of the averages a and b: 0 where nothing
    changes, 0.71 for averages of equal norm that have nothing in common, 1 for opposite ones or where one is nothing.
    up, down: from which change on a layer wants more precision, and up to which it does with less; between them it stays.
    patience: windows in a row that must agree. start: precision at the beginning. lowest: the least precise one allowed; "int8" is simulated: weights
    and inputs are rounded to 8 bits, which shows what they can bear but is no faster.
    skip: layers that always compute in fp32, as shell patterns of their names.
    """

    window: int = Field(default=10, ge=1)
    up: float = Field(default=0.8, gt=0, le=1)
    down: float = Field(default=0.65, ge=0, lt=1)
    patience: int = Field(default=2, ge=1)
    start: Literal["fp32", "bf16", "int8"] = "bf16"
    lowest: Literal["fp32", "bf16", "int8"] = "int8"
    skip: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _apart(self) -> AdaptiveConfig:
        if self.down >= self.up:
            raise ValueError(f"down ({self.down}) must be below up ({self.up}), or layers would move to and fro")
        if LEVELS.index(self.start) < LEVELS.index(self.lowest):
            raise ValueError(f"start ({self.start}) is below lowest ({self.lowest})")
        return self


LEVELS = ("int8", "bf16", "fp32")
"""Precisions a layer may compute in, the least precise first."""


class FinetuneConfig(Config):
    """How to fine-tune a classifier.

    size: examples per batch. label_smoothing: share of the target spread over all classes (Szegedy et al. 2016).
    layer_decay: learning rate of each block as a share of the block above it (Howard and Ruder 2018); 1 means all learn alike.
    head_lr: how many times faster the fresh head learns than the topmost block.
    freeze_embeddings, freeze_layers: what keeps its weights: everything before the first block, and the lowest blocks (which includes the embeddings).
    dropout: probability for all the module's dropout layers while it trains; None leaves them as they are.
    evaluate_every: steps between looks at the validation score; None means after each epoch. The best weights seen are kept. patience: looks
    without progress before it stops; None means never. adaptive: move each layer among precisions while it trains; everything else is float32 then.
    """

    train: TrainConfig = TrainConfig(lr=1e-4)
    size: int = Field(default=32, ge=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    head_lr: float = Field(default=1.0, gt=0)
    freeze_embeddings: bool = False
    freeze_layers: int = Field(default=0, ge=0)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    evaluate_every: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    adaptive: AdaptiveConfig | None = None
