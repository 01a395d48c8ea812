"""Sparse attention as a pass."""

from lissome.compress.attention.config import SparsifyConfig
from lissome.compress.attention.plan import Layer, Rung, Table, candidates, plan_for, profile
from lissome.compress.attention.run import Sparsified, read_record, sparsify, sparsify_to

__all__ = ["Layer", "Rung", "Sparsified", "SparsifyConfig", "Table", "candidates", "plan_for", "profile", "read_record", "sparsify", "sparsify_to"]
