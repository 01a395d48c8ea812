"""What a batch holds, whatever its form: a mapping of named tensors with or without `labels`, a tuple of inputs with the labels last, or one tensor.

Arrays are taken for tensors everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from lissome.core.errors import BadInput
from lissome.nn.call import call, unfused
from lissome.train.batches import LABELS

Values = torch.Tensor | np.ndarray


def inputs_of(batch: Any) -> dict[str, torch.Tensor]:
    """The batch's inputs by name; unnamed ones are called 0, 1, ... Raises BadInput for what is none of the three forms."""
    if isinstance(batch, Mapping):
        return {str(name): torch.as_tensor(value) for name, value in batch.items() if name != LABELS and isinstance(value, Values)}
    if isinstance(batch, Values):
        return {"0": torch.as_tensor(batch)}
    if isinstance(batch, tuple | list) and batch:
        inputs = batch[:-1] if len(batch) > 1 else batch
        if all(isinstance(one, Values) for one in inputs):
            return {str(i): torch.as_tensor(one) for i, one in enumerate(inputs)}
    raise BadInput(
        f"cannot tell inputs and labels apart in a batch of {type(batch).__name__}.",
        expected='a mapping of tensors (labels under "labels"), a tuple (inputs..., labels), or one tensor',
    )


def labels_of(batch: Any) -> torch.Tensor | None:
    """The labels of a batch, where it has any."""
    found = batch.get(LABELS) if isinstance(batch, Mapping) else batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    return torch.as_tensor(found) if isinstance(found, Values) else None


def examples_in(batch: Any) -> int:
    """How many examples a batch holds; 0 where it has no inputs."""
    first = next(iter(inputs_of(batch).values()), None)
    return len(first) if first is not None and first.ndim else 0


def forward(module: nn.Module, batch: Any) -> torch.Tensor:
    """The module's output tensor on a batch, on its weights' device. Raises BadInput for the batch, BadModel where the two do not fit."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    inputs = {name: value.to(device) for name, value in inputs_of(batch).items()}
    with unfused():  # what is calibrated, simulated or listened to are the layers themselves
        return call(module, inputs)
