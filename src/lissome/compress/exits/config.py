"""What exits are to keep, and how their heads are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lissome.core.config import Config
from lissome.core.task import Risk
from lissome.train.config import TrainConfig

Rule = Literal["max-probability", "margin", "entropy", "complexity"]


class ExitsConfig(Config):
    """How a classifier gets exits.

    after: numbers of blocks after which a row may leave; None: a third, a half and two thirds of the depth. blocks: name of their list.
    rule: what must be sure: the answer's largest probability, the margin between the two largest, or 1 - its normalised entropy; "complexity": the input itself
    chooses its path before any block has run.
    max_drop: largest loss of the mean score, as a fraction; confidence: level at which it must hold. risk: "drop" weighs answers that get better against those
    that get worse; "lost" counts right answers that become wrong and nothing else, which no gain makes up for.
    frozen: train the heads alone; else the whole model is trained with them. dropout: of the last block, when the whole model trains (layer dropout).
    scale: weight of all exits' losses together, beside 1 for the whole model's; of an exit's loss the share `distil` is its divergence from what the whole
    model says, the rest cross entropy with the labels. inner: width of a head's hidden layer. size: rows of a batch. seconds: time for measuring the speed.
    """

    after: tuple[int, ...] | None = None
    blocks: str | None = None
    rule: Rule = "max-probability"
    max_drop: float = Field(default=0.008, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    risk: Risk = "drop"
    frozen: bool = True
    dropout: float = Field(default=0.1, ge=0, lt=1)
    scale: float = Field(default=1.0, gt=0)
    distil: float = Field(default=0.5, ge=0, le=1)
    inner: int = Field(default=128, ge=1)
    size: int = Field(default=32, ge=1)
    seconds: float = Field(default=5.0, gt=0)
    train: TrainConfig = TrainConfig(epochs=1, lr=1e-3, precision="fp32")
