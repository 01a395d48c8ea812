"""Small models of parts, with weights large enough that inputs matter, and transformers models of the same kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lissome.nn.models.assembly import ModularModel, assemble
from lissome.nn.models.config import ModelConfig, model_config
from lissome.nn.models.presets import llama

VOCABULARY, LENGTH = 99, 96


def decoder(**changes: Any) -> ModelConfig:
    values = llama(VOCABULARY, 32, 3, 4, 2, 64, LENGTH).model_dump(mode="json")
    return model_config({**values, "spread": 0.3, **changes})


def model(**changes: Any) -> ModularModel:
    return assemble(decoder(**changes))


def ids(batch: int = 2, n: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (batch, n), generator=torch.Generator().manual_seed(seed))


def padded(batch: int = 3, n: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with a tail of zeros in the second row, and their mask."""
    mask = torch.ones(batch, n, dtype=torch.int64)
    mask[1, n - 7 :] = 0
    return ids(batch, n) * mask, mask


def shaken(module: nn.Module, seed: int = 0) -> Any:
    """The module in eval mode, all its weights random, norms around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(0, 0.2 if parameter.ndim > 1 else 0.1, generator=generator)
            if parameter.ndim == 1 and "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1)
    return module.eval()
