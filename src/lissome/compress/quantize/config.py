"""How to quantise, as data. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from pydantic import Field, model_validator

from lissome.core.config import Config
from lissome.core.errors import BadInput
from lissome.core.quantization import WEIGHT_ONLY, LayerPrecision, LayerQuant
from lissome.train.config import TrainConfig

Method = Literal["minmax", "percentile", "mse", "entropy"]
Rounding = Literal["rtn", "absolute", "mse", "awq", "gptq", "awq+gptq"]
BY_INPUTS = ("awq", "gptq", "awq+gptq")
"""What needs calibration examples."""


class QuantizeConfig(Config):
    """How to quantise a model after training.

    precision: of every Linear and, when static, every convolution; "int8" is the default, int8-static, left open: `lissome quantize` takes int8-dynamic
    for it where it has no task, but never for "int8-static". Embedding tables become int8 with a scale per row in any
    case; convolutions stay in float unless the precision is int8-static.
    method: how the range of an activation is found: all that was seen; all but the outermost (`percentile`, of each side); the range with the least squared
    error; or the one whose histogram diverges least (entropy, Migacz 2017).
    bias_correction: shift each bias by the mean error that rounding causes on the calibration data (Nagel et al. 2019, section 4.2).
    Off by default: it may harm where ranges clip much.
    smooth: move the size of activations into the weights where that is exact, 0 to 1 (SmoothQuant's alpha, Xiao et al. 2022); None: not at all.
    group, symmetric: of weight-only layers, see LayerQuant. reduce_range: 7-bit weights, for CPUs whose int8 products saturate.
    rounding: how weight-only layers get their integers: by the extremes of each group (rtn), by a search for the scale with the least absolute or squared error
    of the weights, with channels scaled by their inputs first (awq, Lin et al. 2023), or with each rounding's error taken back in the weights still to be
    rounded (gptq, Frantar et al. 2022; its `damp` is a share of the mean of the Hessian's diagonal).
    layers: exceptions by layer name; a name with * or ? is a pattern, and the last that fits counts.
    adaptive_layers: how many of the most sensitive layers are spared: a share below 1, or a number. adaptive_precision: what they are left in.
    sensitivity: how a layer's is found: the divergence of the outputs when it alone is rounded, measured layer by layer, or its estimate from gradients,
    which takes one pass for all layers. sensitivity_examples: calibration examples on which it is taken.
    smallest: layers with fewer weights stay in float: they cost nothing. least_examples: fewer calibration examples than this are refused.
    """

    precision: Literal["int8-static", "int8-dynamic", "w8a16", "w4a16"] = "int8-static"
    method: Method = "mse"
    percentile: float = Field(default=99.99, gt=50, le=100)
    bias_correction: bool = False
    smooth: float | None = Field(default=None, ge=0, le=1)
    group: Literal[16, 32, 64, 128, 256] | None = 32
    symmetric: bool = True
    reduce_range: bool = False
    rounding: Rounding = "mse"
    damp: float = Field(default=0.01, gt=0)
    layers: Mapping[str, LayerQuant] = {}
    adaptive_layers: float = Field(default=0, ge=0)
    adaptive_precision: Literal["bf16", "fp32"] = "bf16"
    sensitivity: Literal["divergence", "gradient"] = "divergence"
    sensitivity_examples: int = Field(default=64, ge=1)
    smallest: int = Field(default=1024, ge=1)
    least_examples: int = Field(default=8, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _int8(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("precision") == "int8":
            return {name: value for name, value in values.items() if name != "precision"}
        return values

    @property
    def open(self) -> bool:
        """Whether no precision was named, or just int8."""
        return "precision" not in self.model_fields_set

    @model_validator(mode="after")
    def _whole(self) -> QuantizeConfig:
        if self.adaptive_layers > 1 and self.adaptive_layers != int(self.adaptive_layers):
            raise ValueError("adaptive_layers is a share below 1 or a whole number of layers")
        if self.bias_correction and "gptq" in self.rounding:
            raise ValueError("gptq makes up for the mean error in the weights: leave bias_correction out")
        return self

    @property
    def by_inputs(self) -> bool:
        """Whether weights are rounded by what goes into their layers."""
        return self.rounding in BY_INPUTS

    @property
    def search(self) -> Literal["rtn", "absolute", "mse"]:
        """How the scales of weights are searched where inputs are not looked at."""
        return "mse" if self.rounding in BY_INPUTS else self.rounding  # type: ignore[return-value]

    def spared(self, layers: int) -> int:
        """How many of `layers` layers are spared."""
        import math

        return min(layers, math.ceil(self.adaptive_layers * layers) if self.adaptive_layers < 1 else int(self.adaptive_layers))


def exceptions(named: Sequence[str], group: int | None) -> dict[str, LayerQuant]:
    """`layers` from "NAME=PRECISION", in order; weight-only precisions get `group`. Raises BadInput for anything else."""
    found: dict[str, LayerQuant] = {}
    for one in named:
        name, _, precision = one.rpartition("=")
        if not name or precision not in get_args(LayerPrecision):
            raise BadInput(
                f'--layer: "{one}" does not say which layer is to be what.',
                expected=f"NAME=PRECISION, the precision one of {', '.join(get_args(LayerPrecision))}; a name with * or ? is a pattern",
                do='write it like this: --layer "classifier=fp32"',
            )
        found[name] = LayerQuant.model_validate({"precision": precision, "group": group if precision in WEIGHT_ONLY else None})
    return found


class QatTaskConfig(Config):
    """How to train a quantised classifier on a task.

    size: examples per batch. scale_lr: learning rate of the scales' relative change; 0 leaves the scales alone.
    teacher: share of the loss that compares with the float model's outputs; the rest compares with the labels.
    evaluate_every: steps between looks at the validation score, None: after each epoch; the best weights are kept. patience: looks without progress
    before it stops.
    """

    train: TrainConfig = TrainConfig(lr=2e-5)
    size: int = Field(default=32, ge=1)
    scale_lr: float = Field(default=1e-3, ge=0)
    teacher: float = Field(default=0.5, ge=0, le=1)
    evaluate_every: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
