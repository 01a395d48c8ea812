"""What a layer of experts is, as data. Importing this needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lissome.core.config import Config

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
Balance = Literal["bias", "switch", "none"]


class MoEConfig(Config):
    """A layer of experts in the place of a feed-forward network.

    experts, active: how many there are, and how many each token takes. neurons: of each. shared: neurons of one more that every token takes; 0: none.
    group: columns that share a scale where the experts' weights are codes of 4 bits, None for floats; such experts are not trained.
    activation, gated: of an expert: down(act(gate x) * (up x)), or down(act(up x)). biases: whether the expert's sums have them (a split dense network's may).
    offset: whether the router's logits have one for each expert. scores: what the logits become. weights: of the chosen experts' outputs: "normalised": their
    scores over their sum (Mixtral), "scores": the scores (Switch), "ones": 1, so that all experts together are the dense network that was split. scale: of all
    weights; with `active` "normalised" ones add up as the neurons of one dense network do.
    balance: what keeps the load even in training: "bias" nudges a number per expert that is added to its score for choosing only (Wang et al. 2024,
    DeepSeek-V3), by up to `rate` a step; "switch" adds Fedus et al.'s loss (2021), times `strength`.
    """

    experts: int = Field(default=16, ge=1)
    active: int = Field(default=2, ge=1)
    neurons: int = Field(ge=1)
    shared: int = Field(default=0, ge=0)
    group: Literal[32, 64, 128] | None = None
    activation: Activation = "silu"
    gated: bool = True
    biases: bool = False
    offset: bool = False
    scores: Literal["softmax", "sigmoid"] = "softmax"
    weights: Literal["normalised", "scores", "ones"] = "normalised"
    scale: float = Field(default=1.0, gt=0)
    balance: Balance = "bias"
    rate: float = Field(default=3e-3, gt=0)
    strength: float = Field(default=1e-2, ge=0)

    @model_validator(mode="after")
    def _enough(self) -> MoEConfig:
        if self.active > self.experts:
            raise ValueError(f"{self.active} active experts of {self.experts}: a token cannot take more experts than there are")
        return self
