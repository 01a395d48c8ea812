"""Logarithms of probabilities from scores that are none yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def log_softmax(values: np.ndarray) -> np.ndarray:
    """Of each row of scores [rows, classes], in their own precision."""
    import numpy as np

    shifted: np.ndarray = values - values.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
