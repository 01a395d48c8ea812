"""Sparse activations as a pass."""

from lissome.compress.activation.config import ActivationConfig
from lissome.compress.activation.profile import LayerZeros, multiplications, thresholds_for, zeros
from lissome.compress.activation.run import Silenced, read_record, sparsify_activations, sparsify_activations_to

__all__ = [
    "ActivationConfig",
    "LayerZeros",
    "Silenced",
    "multiplications",
    "read_record",
    "sparsify_activations",
    "sparsify_activations_to",
    "thresholds_for",
    "zeros",
]
