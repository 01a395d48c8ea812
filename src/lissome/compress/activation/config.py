"""How to make activations sparse, as data. Importing this needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lissome.core.config import Config
from lissome.core.task import LANGUAGE, Risk
from lissome.train.config import TrainConfig

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
"""Shares of zeros that every layer's threshold is set for, from safe to bold: written down here before any loss is seen."""
BOLDER = (0.0, 0.03, 0.06)
"""The same for a model that was trained for a share, as differences from it. Fewer zeros are no safer: it has not learned with them."""


class ActivationConfig(Config):
    """What is to be kept, and what may be spent on it.

    keep: share of the dense model's quality, above 0 and below 1. confidence: of the promise. risk: "lost" promises that right answers stay right (or an
    example its score), which a trained model breaks where it answers otherwise, though no worse; "drop" that the mean score stays.
    activation: "same" keeps the model's own (silu, gelu), else it becomes relu or relu2, which few models bear without training.
    on: what a threshold is held against: |act(gate)|, or |act(gate) * up|.
    examples: how many of the calibration split thresholds are set on, and of the validation split zeros are measured on.
    adapt: train the model, taught by its dense self, while the thresholds rise until `share` of the activations are zero; penalty: weight of the mean
    size of activations, relative to the first batch's. train: how. size: examples per batch; None takes 16, and 1 for language models.
    """

    keep: float = Field(default=0.99, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    risk: Risk = "lost"
    activation: Literal["same", "relu", "relu2"] = "same"
    on: Literal["gate", "product"] = "gate"
    examples: int = Field(default=64, ge=6)
    adapt: bool = False
    share: float = Field(default=0.85, gt=0, lt=1)
    penalty: float = Field(default=0.0, ge=0)
    train: TrainConfig = TrainConfig(epochs=1, lr=5e-5, precision="auto")
    size: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _trainable(self) -> ActivationConfig:
        if self.adapt and self.on == "product":
            raise ValueError('training raises the zeros of the gate; give on="gate"')
        return self

    def batch(self, kind: str) -> int:
        """Examples per batch for a task of this kind."""
        return self.size or (1 if kind == LANGUAGE else 16)

    def bolder(self) -> tuple[float, ...]:
        """Shares that a trained model is tried at, from safe to bold."""
        return tuple(share for by in BOLDER if 0 < (share := round(self.share + by, 4)) < 1)
