"""Calibration batches of any shape: mappings of arrays or tensors, (inputs, labels) pairs, or bare tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from lissome.core.errors import BadInput
from lissome.nn.call import call, output_tensor
from lissome.train.batches import LABELS


def inputs_of(batch: Any) -> dict[str, torch.Tensor] | torch.Tensor:
    """What goes into the module: the tensors of a mapping without its labels, else the (first) tensor. Raises BadInput for anything else."""
    if isinstance(batch, Mapping):
        return {name: torch.as_tensor(value) for name, value in batch.items() if name != LABELS and isinstance(value, torch.Tensor | np.ndarray)}
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, torch.Tensor | np.ndarray):
        raise BadInput(
            f"cannot read inputs from a batch that is a {type(batch).__name__}.",
            expected="named tensors, a pair of inputs and labels, or a tensor",
            do="give batches as the model takes them",
        )
    return torch.as_tensor(first)


def labels_of(batch: Any) -> torch.Tensor | None:
    """The labels [n] of a batch, where it has any."""
    found = batch.get(LABELS) if isinstance(batch, Mapping) else batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    return torch.as_tensor(found) if isinstance(found, torch.Tensor | np.ndarray) else None


def examples_in(batch: Any) -> int:
    """How many examples a batch holds."""
    inputs = inputs_of(batch)
    first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    return len(first)


def forward(module: nn.Module, batch: Any) -> torch.Tensor:
    """The module's outputs on a batch, on the device where its weights are."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    inputs = inputs_of(batch)
    if isinstance(inputs, dict):
        return call(module, {name: value.to(device) for name, value in inputs.items()})
    return output_tensor(module(inputs.to(device)))
