"""How to sparsify attention, as data. Importing this needs no torch."""

from __future__ import annotations

from pydantic import Field

from lissome.core.config import Config
from lissome.core.task import LANGUAGE
from lissome.train.config import TrainConfig

TAUS = (1.0, 0.999, 0.995, 0.99, 0.98, 0.97, 0.95, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.3, 0.0)
"""Attention mass that every head has to keep, from dense to the cheapest pattern everywhere: written down here before any loss is seen."""


class SparsifyConfig(Config):
    """What is to be kept, and what may be spent on it.

    keep: share of the dense model's quality, above 0 and below 1: of right answers that stay right, or of an example's score. confidence: of the promise.
    candidates: patterns that a head may take, as text; None takes windows and best blocks that fit the data's lengths (`plan.candidates`). What a
    candidate names has to be known to `nn.attention.written`. examples: how many of the calibration split the heads are watched on, rows: on how many
    of each one's queries the kept mass is measured.
    fit_steps: how many batches of the train split the learned scorers that candidates name (indexer, learned_importance) are fitted on, before the profile.
    adapt: when the boldest plan that keeps it is known, train the model for the next bolder one, and certify that.
    train: how. size: examples per batch; None takes 16, and 1 for language models, whose outputs are large.
    seconds: how long dense and sparse forward passes are timed side by side.
    """

    keep: float = Field(default=0.98, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    candidates: tuple[str, ...] | None = None
    examples: int = Field(default=32, ge=1)
    rows: int = Field(default=64, ge=1)
    fit_steps: int = Field(default=100, ge=1)
    adapt: bool = False
    train: TrainConfig = TrainConfig(epochs=1, lr=5e-5, precision="auto")
    size: int | None = Field(default=None, ge=1)
    seconds: float = Field(default=10.0, gt=0)

    def batch(self, kind: str) -> int:
        """Examples per batch for a task of this kind."""
        return self.size or (1 if kind == LANGUAGE else 16)
