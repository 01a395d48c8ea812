"""Whether two groupings of counts have to do with one another: mutual information, and what it would be by chance.

What is counted within one window of text hangs together, so windows are permuted and not their tokens: a chi-square test over tokens would find patterns
in noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lissome.core.errors import BadInput

DRAWS = 1000


@dataclass(frozen=True)
class Dependence:
    """bits: mutual information between groups and columns. chance: the bound that independent groups stay below with the given confidence; mean_chance: what
    they give on average. p_value: share of permutations (the data as it is among them) that give as much. deviations: how far the bits lie above the
    permutations' mean, in their standard deviations. p_family: share of permutations in which the strongest of all tables that were tested together lies as
    many deviations out; the p_value itself for a table that was tested alone. windows: what was permuted."""

    bits: float
    chance: float
    mean_chance: float
    p_value: float
    deviations: float
    p_family: float
    windows: int
    confidence: float

    @property
    def dependent(self) -> bool:
        """Whether independence is refused at the confidence, however many tables were tested together."""
        return self.p_family <= 1 - self.confidence


def mutual_information(table: np.ndarray) -> float:
    """Of a table of counts [groups, columns], in bits."""
    total = float(table.sum())
    if not total:
        return 0.0
    joint = table / total
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return max(0.0, float((joint[seen] * np.log2(joint[seen] / apart[seen])).sum()))


def dependence(counts: np.ndarray, groups: np.ndarray, confidence: float = 0.95, seed: int = 0, draws: int = DRAWS) -> Dependence:
    """Whether the columns of counts [windows, columns] depend on the windows' groups [windows], by permuting the groups. Same seed, same result.

    The p-value is exact for windows that are exchangeable (Phipson and Smyth 2010). Raises BadInput for fewer than two windows or groups, counts that are
    negative, or too few draws for the confidence.
    """
    return dependences([counts], groups, confidence, seed, draws)[0]


def dependences(tables: Sequence[np.ndarray], groups: np.ndarray, confidence: float = 0.95, seed: int = 0, draws: int = DRAWS) -> list[Dependence]:
    """`dependence` of several counts [windows, columns] of the same windows, such as a model's layers, by the same permutations.

    Whoever picks the strongest of them reads its `p_family`: the observed maximum is held against the permuted maxima, each table standardised by its own
    permutations (Westfall and Young 1993, single step). If no table depends on the groups, any `p_family` falls below p with a probability of at most p.
    """
    group, count = _group_numbers(tables, groups)
    if (1 + draws) * (1 - confidence) < 1:
        raise BadInput(f"{draws} draws cannot reach a confidence of {confidence:g}", do="ask for more draws")
    generator = np.random.default_rng(seed)
    orders = np.stack([group, *(generator.permutation(group) for _ in range(draws))])
    members = np.eye(count)[orders].transpose(0, 2, 1)  # [1 + draws, groups, windows]; the data as it is comes first
    bits = np.array([[mutual_information(one) for one in members @ np.asarray(counts, dtype=np.float64)] for counts in tables])
    spread = bits.std(1, keepdims=True)
    out = np.divide(bits - bits.mean(1, keepdims=True), spread, out=np.zeros_like(bits), where=spread > 1e-12)
    furthest = out.max(0)
    found = []
    for one, deviations in zip(bits, out, strict=True):
        p_value, p_family = float((one >= one[0] - 1e-12).mean()), float((furthest >= deviations[0] - 1e-9).mean())
        bound = float(np.sort(one)[min(draws, math.ceil(confidence * (1 + draws)) - 1)])
        found.append(Dependence(float(one[0]), bound, float(one[1:].mean()), p_value, float(deviations[0]), p_family, len(group), confidence))
    return found


def _group_numbers(tables: Sequence[np.ndarray], groups: np.ndarray) -> tuple[np.ndarray, int]:
    """Number of each window's group [windows], and how many groups there are."""
    groups = np.asarray(groups)
    for counts in map(np.asarray, tables):
        if counts.ndim != 2 or groups.shape != counts.shape[:1] or (counts < 0).any():
            raise BadInput(
                f"counts {list(counts.shape)} and groups {list(groups.shape)} do not belong together",
                expected="[windows, columns], none negative, and [windows]",
            )
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise BadInput(f"{len(groups)} windows of {len(names)} groups cannot be compared", expected="windows of at least 2 groups")
    return group, len(names)
