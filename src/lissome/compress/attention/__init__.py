"""Sparse attention as a pass."""
