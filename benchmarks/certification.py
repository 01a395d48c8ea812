"""How often is a drop certified that should not be? Contracts drawn from known truths.

    python benchmarks/certification.py [--json] [--contracts 1000] [--repetitions 200] [--write FILE.md]

Table 1, 0/1 scores: contracts whose true drop lies exactly at the limit of one point. A method that holds its 95 % certifies at most 5 % of
them. "exact" is the test of the product, "Tango" its asymptotic score test, "Wald" the textbook drop + 1.645 standard errors. Below them, the
same with a smaller true drop: power.
Table 2, real-valued scores in [0, 1]: how often the one-sided 95 % upper bound of the mean drop covers the true mean, for the bootstrap of the
product (a worst example added) and for the two usual ones, BCa and studentised. About ten minutes on one core, most of it the usual ones.

JSON document (--json prints it on stdout, alone):
    schema_version  1
    seed, confidence, margin   numbers; margin as a fraction
    contracts       rows {n: int, discordance, true_drop: fraction of examples, contracts: int,
                          exact, tango, wald: {certified: share, low, high: its exact 95 % interval}}
    bootstrap       rows {n: int, shape: str, repetitions: int,
                          worst_example, bca, studentised: {covered: share, low, high: its exact 95 % interval}}
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from lissome.core.statistics import asymptotic_upper_bound, bootstrap_drop, drop_p_value, proportion_interval
from lissome.report.markdown import update_marked_block

SEED, CONFIDENCE, MARGIN = 20_240, 0.95, 0.01
Z = NormalDist().inv_cdf(CONFIDENCE)

AT_LIMIT = [(n, discordance, MARGIN) for n in (300, 1000, 3000, 6000) for discordance in (0.012, 0.02, 0.05, 0.10)]
BELOW = [(1000, 0.01, 0.0), (3000, 0.02, 0.0), (6000, 0.02, 0.003), (6000, 0.05, 0.003)]

Draw = Callable[[np.random.Generator, int], np.ndarray]
SHAPES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda random, n: random.normal(0.01, 0.05, n), 0.01),
    "skewed (exponential)": (lambda random, n: random.exponential(0.05, n) - 0.04, 0.01),
    "5 % of examples lose 0 to 0.4": (lambda random, n: (random.random(n) < 0.05) * random.uniform(0, 0.4, n), 0.01),
    "1 % of examples lose 1": (lambda random, n: (random.random(n) < 0.01) * 1.0, 0.01),
}


def share(hits: int, total: int, name: str) -> dict[str, float]:
    """A share with its exact interval."""
    value, low, high = proportion_interval(hits, total)
    return {name: value, "low": low, "high": high}


def contract_row(n: int, discordance: float, drop: float, contracts: int) -> dict[str, Any]:
    """Certify `contracts` draws of one truth with three methods; equal outcomes are tested once."""
    random = np.random.default_rng([SEED, n, round(1e6 * discordance), round(1e6 * drop)])
    rates = [(discordance + drop) / 2, (discordance - drop) / 2, 1 - discordance]
    outcomes, counts = np.unique(random.multinomial(n, rates, size=contracts)[:, :2], axis=0, return_counts=True)
    lost, gained = outcomes.T
    exact = np.array([drop_p_value(int(b), int(c), n, MARGIN, CONFIDENCE) <= 1 - CONFIDENCE for b, c in outcomes])
    observed = (lost - gained) / n
    certified = {
        "exact": exact,
        "tango": asymptotic_upper_bound(lost, gained, n, CONFIDENCE) <= MARGIN,
        "wald": observed + Z * np.sqrt(((lost + gained) / n - observed**2) / n) <= MARGIN,
    }
    shares = {name: share(int(counts[inside].sum()), contracts, "certified") for name, inside in certified.items()}
    return {"n": n, "discordance": discordance, "true_drop": drop, "contracts": contracts, **shares}


def usual_bounds(drops: np.ndarray, random: np.random.Generator, draws: int = 999) -> dict[str, float]:
    """One-sided upper bounds by BCa and by the studentised bootstrap (Efron and Tibshirani 1993, chapters 14 and 12)."""
    n, mean, deviation = len(drops), drops.mean(), drops.std(ddof=1)
    if deviation == 0:
        return {"bca": mean, "studentised": mean}
    weights = random.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    means = weights @ drops / n
    deviations = np.sqrt(np.maximum(weights @ drops**2 / n - means**2, 0) * n / (n - 1))
    normal = NormalDist()
    below = ((means < mean).mean() + (means <= mean).mean()) / 2
    bias = normal.inv_cdf(min(max(below, 1e-6), 1 - 1e-6))
    influence = drops - mean
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    level = normal.cdf(bias + (bias + Z) / (1 - acceleration * (bias + Z)))
    # A resample without spread has t = minus or plus infinity; kept, as a large number, so that the quantile is defined.
    gaps = means - mean
    t = np.where(deviations > 0, gaps / np.where(deviations > 0, deviations, 1.0), np.sign(gaps) * 1e9)
    return {"bca": float(np.quantile(means, level)), "studentised": float(mean - deviation * np.quantile(t, 1 - CONFIDENCE))}


def bootstrap_row(n: int, shape: str, repetitions: int) -> dict[str, Any]:
    """Coverage of the upper bounds on one kind of real-valued drop."""
    draw, truth = SHAPES[shape]
    random = np.random.default_rng([SEED, n, list(SHAPES).index(shape)])
    covered = {"worst_example": 0, "bca": 0, "studentised": 0}
    for repetition in range(repetitions):
        drops = draw(random, n)
        ours = bootstrap_drop(np.ones(n), 1 - drops, MARGIN, CONFIDENCE, repetition, score_range=(0.0, 1.0), draws=999)
        for name, bound in {"worst_example": ours.high, **usual_bounds(drops, random)}.items():
            covered[name] += bound >= truth
    return {"n": n, "shape": shape, "repetitions": repetitions, **{name: share(hits, repetitions, "covered") for name, hits in covered.items()}}


def percent(cell: dict[str, float], name: str) -> str:
    """A share with its interval, as in 4.6 % [3.4, 6.1]."""
    return f"{100 * cell[name]:.1f} % [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def markdown(document: dict[str, Any]) -> str:
    """Both tables."""
    lines = ["| n | discordance | true drop | certified: exact | Tango | Wald |", "|---:|---:|---:|---|---|---|"]
    for row in document["contracts"]:
        cells = " | ".join(percent(row[name], "certified") for name in ("exact", "tango", "wald"))
        lines.append(f"| {row['n']} | {100 * row['discordance']:g} % | {100 * row['true_drop']:g} pt | {cells} |")
    lines += ["", "| n | drop of one example | bound covers: worst example added | BCa | studentised |", "|---:|---|---|---|---|"]
    for row in document["bootstrap"]:
        cells = " | ".join(percent(row[name], "covered") for name in ("worst_example", "bca", "studentised"))
        lines.append(f"| {row['n']} | {row['shape']} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run both simulations and print the tables."""
    parser = argparse.ArgumentParser(description="Simulated contracts: how often is a drop certified that should not be?")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("--contracts", type=int, default=1000, help="contracts per row of the first table")
    parser.add_argument("--repetitions", type=int, default=200, help="samples per row of the second table")
    parser.add_argument("--write", type=Path, help="a Markdown file with <!-- certification --> markers to write the tables into")
    given = parser.parse_args()
    document: dict[str, Any] = {"schema_version": 1, "seed": SEED, "confidence": CONFIDENCE, "margin": MARGIN, "contracts": [], "bootstrap": []}
    for n, discordance, drop in AT_LIMIT + BELOW:
        print(f"contracts: n = {n}, discordance {discordance:.1%}, drop {drop:.1%}", file=sys.stderr)
        document["contracts"].append(contract_row(n, discordance, drop, given.contracts))
    for shape in SHAPES:
        for n in (50, 200, 1000, 5000):
            print(f"bootstrap: n = {n}, {shape}", file=sys.stderr)
            document["bootstrap"].append(bootstrap_row(n, shape, given.repetitions))
    tables = markdown(document)
    if given.write:
        update_marked_block(given.write, "certification", tables)
    print(json.dumps(document) if given.json else tables)


if __name__ == "__main__":
    main()
