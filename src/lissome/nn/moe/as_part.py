"""A layer of experts as a part of a modular model: {"kind": "experts", "neurons": 256, "experts": 16, "active": 2}."""

from __future__ import annotations

from typing import Any, ClassVar

from lissome.core.config import Config
from lissome.nn.moe.config import MoEConfig
from lissome.nn.moe.layer import MoE


class ExpertsPart(MoE):
    """`MoE` made from flat options, those of `MoEConfig`. Raises ValueError for codes of 4 bits, which are made of trained weights."""

    form: ClassVar[type[Config]] = MoEConfig

    def __init__(self, width: int, **options: Any):
        config = MoEConfig(**options)
        if config.group is not None:
            raise ValueError("experts of 4 bits cannot be trained, so a model does not begin with them; leave `group` out")
        super().__init__(width, config)
