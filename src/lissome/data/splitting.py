"""Make splits: stratified, seeded, and never tearing apart rows that belong together (a group, or copies of one example)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from pydantic import Field, model_validator

from lissome.core.config import Config
from lissome.core.task import SplitName

ALGORITHM = 1
"""Raised when the same seed would give other splits; part of every task's fingerprint."""


class Fractions(Config):
    """Share of the rows that each split gets; the four sum to 1."""

    train: float = Field(default=0.6, gt=0, lt=1)
    calibration: float = Field(default=0.05, gt=0, lt=1)
    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _sum(self) -> Fractions:
        total = self.train + self.calibration + self.validation + self.test
        if abs(total - 1) > 1e-6:
            parts = f"train {self.train:g} + calibration {self.calibration:g} + validation {self.validation:g} + test {self.test:g}"
            raise ValueError(f"the fractions must sum to 1; {parts} = {total:g}")
        return self

    def shares(self) -> dict[SplitName, float]:
        """As a mapping in the order of core.task.SPLITS."""
        return {"train": self.train, "calibration": self.calibration, "validation": self.validation, "test": self.test}


def units_of(n: int, *partitions: Sequence[Hashable] | None) -> np.ndarray:
    """Unit number of each row [n], numbered by first appearance: rows that share a value in any of the `partitions` are in one unit (union-find).

    A None entry of a partition (an empty group cell) shares nothing.
    """
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for partition in partitions:
        first: dict[Hashable, int] = {}
        for i, value in enumerate(partition or ()):
            if value is None:
                continue
            a, b = root(first.setdefault(value, i)), root(i)
            parent[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root(i), len(numbers)) for i in range(n)], dtype=np.int64)


def split_rows(
    strata: Sequence[Hashable] | np.ndarray, shares: Mapping[SplitName, float], seed: int, units: np.ndarray | None = None
) -> dict[SplitName, np.ndarray]:
    """Divide the rows of `strata` [n] so that every stratum has about the given share in each split; row numbers per split, ascending.

    units [n]: rows of one unit stay together. Units of several rows are placed first, the largest first, each where it takes the table of
    rows per split and stratum least away from proportional (chi-square distance); single rows then fill what is missing exactly.
    The first split (train) gets at least one of the single rows of every stratum, since a class that is never seen cannot be learned.
    """
    names, values = list(shares), np.array(list(shares.values()), dtype=np.float64)
    values = values / values.sum()
    columns: dict[Hashable, int] = {}
    stratum = np.array([columns.setdefault(s, len(columns)) for s in (strata.tolist() if isinstance(strata, np.ndarray) else strata)], dtype=np.int64)
    n = len(stratum)
    units = np.arange(n) if units is None else units
    rng = np.random.default_rng(seed)
    assigned = np.full(n, -1, dtype=np.int64)
    wanted = values[:, None] * np.bincount(stratum, minlength=len(columns))[None, :]
    have = np.zeros_like(wanted)
    sizes = np.bincount(units)
    _place_units(stratum, units, sizes, wanted, have, assigned, rng)
    _fill_singles(stratum, np.flatnonzero(sizes[units] == 1), wanted, have, assigned, rng)
    return {name: np.flatnonzero(assigned == i) for i, name in enumerate(names)}


def _place_units(
    stratum: np.ndarray, units: np.ndarray, sizes: np.ndarray, wanted: np.ndarray, have: np.ndarray, assigned: np.ndarray, rng: np.random.Generator
) -> None:
    """Assign every unit of more than one row, largest first, ties in random order."""
    order = np.argsort(units, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    several = rng.permutation(np.flatnonzero(sizes > 1))
    for unit in several[np.argsort(-sizes[several], kind="stable")]:
        rows = order[starts[unit] : starts[unit + 1]]
        at, count = np.unique(stratum[rows], return_counts=True)
        missing = wanted[:, at] - have[:, at]
        growth = ((count**2 - 2 * count * missing) / wanted[:, at]).sum(axis=1)
        best = int(growth.argmin())
        have[best, at] += count
        assigned[rows] = best


def _fill_singles(stratum: np.ndarray, rows: np.ndarray, wanted: np.ndarray, have: np.ndarray, assigned: np.ndarray, rng: np.random.Generator) -> None:
    """Assign single rows so that each stratum reaches its wanted counts; what rounding leaves over is carried to the next stratum."""
    rows = rng.permutation(rows)
    rows = rows[np.argsort(stratum[rows], kind="stable")]
    carry = np.zeros(len(wanted))
    for block in np.split(rows, np.flatnonzero(np.diff(stratum[rows])) + 1):
        if not len(block):
            continue
        k = stratum[block[0]]
        need = np.maximum(wanted[:, k] - have[:, k], 0)
        quota = need * len(block) / need.sum() if need.sum() > 0 else wanted[:, k] / wanted[:, k].sum() * len(block)
        counts = _whole(quota + carry, len(block))
        carry += quota - counts
        if counts[0] == 0 and have[0, k] == 0:  # outside the carry, so that later strata keep their shares
            counts[counts.argmax()] -= 1
            counts[0] = 1
        assigned[block] = np.repeat(np.arange(len(counts)), counts)


def _whole(quota: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers near `quota` that sum to `total` (largest remainder, none below zero)."""
    counts: np.ndarray = np.floor(np.maximum(quota, 0)).astype(np.int64)
    while counts.sum() > total:
        counts[np.where(counts > 0, counts - quota, -np.inf).argmax()] -= 1
    while counts.sum() < total:
        counts[(quota - counts).argmax()] += 1
    return counts
