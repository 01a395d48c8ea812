"""Contracts drawn from a known truth."""

from __future__ import annotations

import numpy as np

from lissome.core.statistics import drop_p_value


def share_certified(n: int, discordance: float, drop: float, margin: float, contracts: int, seed: int, confidence: float = 0.95) -> float:
    """Share of simulated contracts that the exact test certifies; equal outcomes are tested once."""
    rates = [(discordance + drop) / 2, (discordance - drop) / 2, 1 - discordance]
    draws = np.random.default_rng(seed).multinomial(n, rates, size=contracts)[:, :2]
    outcomes, counts = np.unique(draws, axis=0, return_counts=True)
    certified = [drop_p_value(int(lost), int(gained), n, margin, confidence) <= 1 - confidence for lost, gained in outcomes]
    return float(counts[certified].sum() / contracts)
