"""How a dense model is split, as data. Importing this needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lissome.core.config import Config


class SplitConfig(Config):
    """How each feed-forward network becomes experts.

    experts, active: how many, and how many each token takes. shared: neurons that every token takes, those that matter most on average.
    cluster: what brings neurons together: "activations" that rise and fall together over the calibration tokens (MoEfication, Zhang et al. 2022), "weights"
    that look alike, or "random" (LLaMA-MoE). ridge: of the router's fit, as a share of the inputs' mean square. rescale: multiply what the chosen experts
    give by the factor that brings it closest to all of them (1 where all are active). tokens: calibration tokens kept for each network.
    group: quantise the experts to 4 bits in groups of so many columns.
    """

    experts: int = Field(default=16, ge=1)
    active: int = Field(default=4, ge=1)
    shared: int = Field(default=0, ge=0)
    cluster: Literal["activations", "weights", "random"] = "activations"
    ridge: float = Field(default=1e-2, gt=0)
    rescale: bool = True
    tokens: int = Field(default=4096, ge=16)
    group: Literal[32, 64, 128] | None = None
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _enough(self) -> SplitConfig:
        if self.active > self.experts:
            raise ValueError(f"{self.active} active experts of {self.experts}: a token cannot take more experts than there are")
        return self
