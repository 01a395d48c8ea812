"""How `decoder.json` names the kind of a layer's feed-forward part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from lissome.core.config import Config
from lissome.kernels.decoder.arrays import Array
from lissome.kernels.decoder.ffn import Activation, Experts, Ffn, Kind, Weighing

EXPERTS_MOST = 4096
"""A file that names more is broken: nothing is made for what it claims."""


class ExpertsRecord(Config):
    """As `kernels.decoder.ffn.Experts`; bias, offset: whether the tensors hold one."""

    count: int = Field(ge=1, le=EXPERTS_MOST)
    active: int = Field(ge=1, le=EXPERTS_MOST)
    scores: Literal["softmax", "sigmoid"] = "softmax"
    weights: Weighing = "normalised"
    scale: float = Field(default=1.0, allow_inf_nan=False)
    shared: bool = False
    bias: bool = False
    offset: bool = False


class FfnRecord(Config):
    """As `kernels.decoder.ffn.Ffn`."""

    kind: Kind = "gated"
    activation: Activation = "silu"
    threshold: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    experts: ExpertsRecord | None = None


def record_of(ffn: Ffn) -> FfnRecord:
    """What is written of a feed-forward part beside its matrices."""
    experts = ffn.experts
    if experts is None:
        return FfnRecord(kind=ffn.kind, activation=ffn.activation, threshold=ffn.threshold)
    plain = {name: getattr(experts, name) for name in ("count", "active", "scores", "weights", "scale", "shared")}
    record = ExpertsRecord(**plain, bias=experts.bias is not None, offset=experts.offset is not None)
    return FfnRecord(kind=ffn.kind, activation=ffn.activation, experts=record)


def tensors_of(ffn: Ffn, prefix: str) -> dict[str, Array]:
    """Its tensors that are no matrices, by name."""
    given = {} if ffn.experts is None else {f"{prefix}experts.{name}": getattr(ffn.experts, name) for name in ("bias", "offset")}
    return {name: one for name, one in given.items() if one is not None}


def read_ffn(record: FfnRecord, floats: Callable[[str], Array]) -> Ffn:
    """The feed-forward part that a record names. floats(name): of the layer. Raises BadInput where it makes no sense."""
    if record.experts is None:
        return Ffn(record.kind, record.activation, record.threshold)
    told = record.experts
    bias, offset = (floats(f"experts.{name}") if given else None for name, given in (("bias", told.bias), ("offset", told.offset)))
    experts = Experts(told.count, told.active, told.scores, told.weights, told.scale, bias, offset, told.shared)
    return Ffn(record.kind, record.activation, record.threshold, experts)
