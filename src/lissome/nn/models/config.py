"""A model as data. It survives a round trip through JSON and YAML."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic import Field, field_validator

from lissome.core.config import Config, config_error, read_yaml
from lissome.core.errors import BadConfig
from lissome.nn.models.parts import AttentionPart, EmbeddingPart, FfnPart, HeadPart, NormPart, Part, PositionsPart


class BlockConfig(Config):
    """A block, or several alike.

    norm_first: x + f(norm(x)), as in GPT-2, Llama and ViT; otherwise norm(x + f(x)), as in BERT. repeat: how many blocks of this form follow one another.
    """

    attention: AttentionPart
    ffn: FfnPart
    norm: NormPart = Field(default="rms", validate_default=True)
    norm_first: bool = True
    repeat: int = Field(default=1, ge=1)


class ModelConfig(Config):
    """A model. The first of its heads gives what the model returns unless others are asked for; without heads it returns the hidden states.

    width: of the hidden states. length: the most positions. causal: whether the future is hidden. embedding_norm: after embedding and positions; final_norm:
    after the last block. dropout: after the embedding and in each residual branch. seed: of fresh weights, which are normal with deviation `spread`.
    """

    width: int = Field(ge=1)
    length: int = Field(ge=1)
    causal: bool
    embedding: EmbeddingPart
    positions: PositionsPart
    blocks: tuple[BlockConfig, ...] = Field(min_length=1)
    embedding_norm: NormPart | None = None
    final_norm: NormPart | None = None
    heads: Mapping[str, HeadPart] = {}
    dropout: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    spread: float = Field(default=0.02, gt=0)

    @field_validator("heads")
    @classmethod
    def _names(cls, heads: Mapping[str, Part]) -> Mapping[str, Part]:
        for name in heads:
            if not name.isidentifier():
                raise ValueError(f'"{name}" cannot be the name of a head; use letters, digits and _')
        return heads

    def layers(self) -> list[BlockConfig]:
        """One config for each block."""
        return [block.model_copy(update={"repeat": 1}) for block in self.blocks for _ in range(block.repeat)]


def grouped(layers: Sequence[BlockConfig]) -> tuple[BlockConfig, ...]:
    """Neighbours that are alike as one config with `repeat`."""
    return tuple(block.model_copy(update={"repeat": len(list(run))}) for block, run in itertools.groupby(layers))


def read_config(path: Path) -> ModelConfig:
    """The config in a YAML or JSON file (JSON is YAML). Raises BadConfig with file and line."""
    return read_yaml(path, ModelConfig)


def model_config(values: Mapping[str, Any], where: str = "the model's config") -> ModelConfig:
    """The config that `values` hold. Raises BadConfig, naming what exists where a name is unknown."""
    try:
        return ModelConfig.model_validate(values)
    except pydantic.ValidationError as error:
        raise config_error(error, ModelConfig, where) from error


def part_of(role: str, value: Any) -> Part:
    """A part of a role from a kind, a mapping or a Part. Raises BadConfig."""
    from lissome.nn.models.parts import kinds, read

    kinds(role)
    try:
        found: Part = read(role, value)
    except ValueError as error:
        raise BadConfig(str(error)) from error
    return found
