"""Sparse training: weights become zero on a rising schedule, in a pattern, while the model trains."""

from lissome.compress.sparse.config import Pattern, SparseConfig, SparseTaskConfig, parse_pattern
from lissome.compress.sparse.engines import Word, speaks
from lissome.compress.sparse.run import SPARSE, LayerSparsity, sparse_train, sparsity_of
from lissome.compress.sparse.task import Sparsified, sparsify_for_task, sparsify_to

__all__ = [
    "SPARSE",
    "LayerSparsity",
    "Pattern",
    "SparseConfig",
    "SparseTaskConfig",
    "Sparsified",
    "Word",
    "parse_pattern",
    "sparse_train",
    "sparsify_for_task",
    "sparsify_to",
    "sparsity_of",
    "speaks",
]
