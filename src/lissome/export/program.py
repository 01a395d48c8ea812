"""The one trace that every exported form comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from lissome.core.errors import BadModel
from lissome.nn.call import Positional, accepted

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


def export_program(module: nn.Module, example: Mapping[str, np.ndarray], variable_length: bool) -> torch.export.ExportedProgram:
    """Trace `module` with a free batch size, and a free length (dimension 1) where `variable_length`.

    example: named inputs of a batch of at least two examples (a batch of one would be traced as a constant).
    Raises BadModel with torch's reason when the module cannot be traced.
    """
    names = accepted(module, tuple(example))
    inputs = tuple(torch.from_numpy(example[name]) for name in names)
    free = torch.export.Dim.DYNAMIC
    shapes = tuple({0: free, 1: free} if variable_length and tensor.ndim == 2 else {0: free} for tensor in inputs)
    try:
        with torch.no_grad():
            return torch.export.export(Positional(module, names), inputs, dynamic_shapes=(shapes,), strict=False)
    except BadModel:  # a layer of ours that says itself why it cannot be
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BadModel(
            f"the model cannot be traced by torch.export: {reason[:300]}", do="remove data-dependent control flow; torch itself can still run it"
        ) from error
