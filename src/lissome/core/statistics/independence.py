"""Whether two groupings of counts have to do with one another: mutual information, and what it would be by chance.

What is counted within one window of text hangs together, so windows are permuted and not their tokens: a chi-square test over tokens would find patterns
in noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lissome.core.errors import BadInput

DRAWS = 1000


@dataclass(frozen=True)
class Dependence:
    """bits: mutual information between groups and columns. chance: the bound that independent groups stay below with the given confidence; mean_chance: what
    they give on average. p_value: share of permutations (the data as it is among them) that give as much. windows: what was permuted."""

    bits: float
    chance: float
    mean_chance: float
    p_value: float
    windows: int
    confidence: float

    @property
    def dependent(self) -> bool:
        """Whether independence is refused at the confidence."""
        return self.p_value <= 1 - self.confidence


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
    counts, groups = np.asarray(counts, dtype=np.float64), np.asarray(groups)
    if counts.ndim != 2 or groups.shape != counts.shape[:1] or (counts < 0).any():
        raise BadInput(
            f"counts {list(counts.shape)} and groups {list(groups.shape)} do not belong together", expected="[windows, columns], none negative, and [windows]"
        )
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise BadInput(f"{len(counts)} windows of {len(names)} groups cannot be compared", expected="windows of at least 2 groups")
    if (1 + draws) * (1 - confidence) < 1:
        raise BadInput(f"{draws} draws cannot reach a confidence of {confidence:g}", do="ask for more draws")
    generator = np.random.default_rng(seed)
    found = mutual_information(_table(counts, group, len(names)))
    by_chance = np.array([mutual_information(_table(counts, generator.permutation(group), len(names))) for _ in range(draws)])
    p_value = (1 + int((by_chance >= found - 1e-12).sum())) / (1 + draws)
    whole = np.sort(np.append(by_chance, found))
    bound = float(whole[min(draws, math.ceil(confidence * (1 + draws)) - 1)])
    return Dependence(found, bound, float(by_chance.mean()), p_value, len(counts), confidence)


def _table(counts: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Counts by group [groups, columns]."""
    members = np.zeros((groups, len(group)))
    members[group, np.arange(len(group))] = 1
    table: np.ndarray = members @ counts
    return table
