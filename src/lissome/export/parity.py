"""The parity gate: an exported form must compute what the original computes, and when it does not, where it first departs is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

TOLERANCE: dict[str, float] = {"fp32": 1e-3, "bf16": 0.1, "int8-dynamic": 0.5, "int8-static": 0.5, "mixed": 0.5}
"""Allowed relative L2 error of the outputs by precision. fp32 differs by rounding only; 16 bits keep 8 of 24 mantissa bits, which
a dozen layers amplify to a few percent; int8 and mixed forms are judged by their accuracy, so their gate only catches forms that compute something else."""


@dataclass(frozen=True)
class Parity:
    """error: relative L2 distance of outputs to the original's. layer: the first that departs, when `ok` is False and it could be found."""

    error: float
    tolerance: float
    layer: str | None = None
    layer_error: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the form may be used. NaN never passes."""
        return self.error <= self.tolerance

    def sentence(self) -> str:
        """What happened, in words."""
        import math

        size = (
            "NaN, infinite or wrongly shaped outputs"
            if not math.isfinite(self.error)
            else f"outputs differ by {self.error:.2g} of their size (allowed {self.tolerance:g})"
        )
        if self.ok:
            return size
        where = f"; the first layer to depart is {self.layer} ({self.layer_error:.2g})" if self.layer else ""
        return f"parity failed: {size}{where}"


def relative_error(expected: np.ndarray, found: np.ndarray) -> float:
    """||found - expected|| / ||expected||, in float64; infinity for another shape or non-finite values."""
    import numpy as np

    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    scale = float(np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected)) / (scale if scale > 0 else 1.0)


def compare(expected: np.ndarray, found: np.ndarray, precision: str) -> Parity:
    """The gate on outputs alone."""
    return Parity(relative_error(expected, found), TOLERANCE[precision])


def first_departure(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], tolerance: float) -> tuple[str, float] | None:
    """The first layer, in the original's order of execution, whose output departs by more than `tolerance`.

    Layers whose values were fused away, or are laid out otherwise, cannot be compared and are passed over.
    """
    for layer, value in expected.items():
        other = found.get(layer)
        if other is None or other.shape != value.shape:
            continue
        error = relative_error(value, other)
        if not error <= tolerance:
            return layer, error
    return None
