"""Solve: which rows meet the limits, which one to take, and what to ask for when none does. Uses the validation split only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lissome.core.contract import Contract, Limit
from lissome.core.errors import BadInput
from lissome.core.measurement import Measurement
from lissome.core.statistics import asymptotic_upper_bound
from lissome.engines.measure import speedup, times_below
from lissome.optimize.tables import Row

if TYPE_CHECKING:
    import numpy as np

SURE = 0.8
"""A row is taken only if, by what validation says, it passes on the test split with at least this probability."""
LIKELY = 0.5
"""The same when nothing surer is left: the test split is then asked rather than a contract refused that may well be kept."""
EQUAL = 1.03
"""Latencies within this factor count as equal: medians of quiet runs differ by as much from one run to the next."""
PLAINNESS = ("longest", "multiple-of-16", "fixed")
SAFE = 0.95
"""The same probability for a drop that is proposed in place of one that cannot be kept."""
MARGIN = 1.05
"""A proposed limit is this much looser than the measured bound, so that measuring again meets it."""


@dataclass(frozen=True)
class Reading:
    """How a row stands against one limit.

    needed: the bound it could hold, in the limit's own terms (upper end of the interval; for a relative limit the lower end of the factor).
    excess: needed over asked, as a ratio above 1 when the limit is missed. figure: what was measured. safe: what to ask for so that it is kept
    when everything is measured again; `needed` unless given.
    """

    limit: Limit
    needed: float
    excess: float
    figure: Measurement | None
    safe: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the whole interval keeps the limit."""
        return self.excess <= 1.0


def read(row: Row, original: Row, limit: Limit, confidence: float, machine: str, test_size: int, sure: float = SURE) -> Reading:
    """Hold a usable row against a limit. sure: with what probability the test split must confirm a limit on accuracy."""
    if limit.quantity == "max_drop":
        return _read_drop(row, original, limit, confidence, test_size, sure)
    return read_cost(row, limit, confidence, machine)


def read_cost(row: Row, limit: Limit, confidence: float, machine: str) -> Reading:
    """Hold a timed row, beside the original of its own run, against a limit other than that on accuracy."""
    assert row.result is not None and row.original is not None
    figure = row.result.figure(limit.name, machine, confidence)
    if figure is None or figure.method == "estimated":
        return Reading(limit, math.inf, math.inf, figure)
    if not limit.relative:
        return Reading(limit, figure.high, figure.high / limit.bound, figure)
    if limit.quantity == "latency":
        factor = speedup(row.original, row.result, limit.name, machine, confidence)
    else:
        before = row.original.figure(limit.name, machine, confidence)
        assert before is not None, "both were measured in one run, with the same counters"
        factor = times_below(before, figure, confidence)
    return Reading(limit, factor.low, limit.bound / factor.low if factor.low > 0 else math.inf, factor)


def _read_drop(row: Row, original: Row, limit: Limit, confidence: float, test_size: int, sure: float) -> Reading:
    """The smallest drop limit that the row would pass on the test split with probability `sure`, in the limit's own terms (points or per cent).

    A row that was only screened is given the benefit of the doubt, 1 - sure: it may be worth scoring on everything.
    """
    import numpy as np

    assert row.scores is not None and original.scores is not None
    before, screened = original.scores[: len(row.scores)], len(row.scores) < len(original.scores)
    scale = (float(np.mean(original.scores)) if limit.relative else 1.0) / 100
    bound = needed_drop(before, row.scores, test_size, confidence, 1 - sure if screened else sure) / max(scale, 1e-12)
    drop = float(np.mean(before - row.scores)) / max(scale, 1e-12)
    figure = Measurement("drop", drop, drop, bound, "%" if limit.relative else "pt", len(row.scores), "measured", "any", confidence)
    safe = needed_drop(before, row.scores, test_size, confidence, SAFE) / max(scale, 1e-12)
    return Reading(limit, bound, bound / limit.bound if limit.bound > 0 else math.inf, figure, safe)


def needed_drop(original: np.ndarray, candidate: np.ndarray, test_size: int, confidence: float, sure: float = SURE, seed: int = 0) -> float:
    """The margin that a test split of `test_size` certifies with probability `sure`, by what the validation scores [n] say of the pair.

    Draws the true rates from their posterior given validation (Dirichlet with Jeffreys' prior), then the test outcome given the rates, then takes
    the bound each outcome would give. Scores other than 0 and 1 use the normal approximation instead. In units of the score.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    difference = original - candidate
    if set(np.unique(difference)) <= {-1.0, 0.0, 1.0}:
        lost, gained = int((difference > 0).sum()), int((difference < 0).sum())
        rates = rng.dirichlet([lost + 0.5, gained + 0.5, len(difference) - lost - gained + 0.5], size=400)
        drawn = np.array([rng.multinomial(test_size, rate) for rate in rates])
        return float(np.quantile(asymptotic_upper_bound(drawn[:, 0], drawn[:, 1], test_size, confidence), sure))
    from statistics import NormalDist

    spread = float(np.std(difference, ddof=1))
    uncertainty = spread * math.sqrt(1 / test_size + 1 / len(difference)) * NormalDist().inv_cdf(sure)
    return float(difference.mean()) + uncertainty + NormalDist().inv_cdf(confidence) * spread / math.sqrt(test_size)


@dataclass(frozen=True)
class Solution:
    """ranked: rows that keep every limit, best first (empty when infeasible). front: rows on the Pareto front. name: the latency ranked by.

    nearest: when infeasible, the row that misses by least, its readings, and a contract that it meets.
    """

    ranked: tuple[Row, ...]
    front: tuple[Row, ...]
    name: str = "latency_p50"
    nearest: Row | None = None
    readings: tuple[Reading, ...] = ()
    proposal: Contract | None = None


def solve(rows: Sequence[Row], contract: Contract, machine: str, test_size: int, sure: float = SURE) -> Solution:
    """Rank the rows that keep every limit by latency; when none does, find the nearest point. `rows[0]` is the original; sure: as `read` takes it.

    Below SURE the rows that keep every limit are ranked by how likely the test split is to confirm their accuracy: speed to spare is of no use then.
    """
    original, usable = rows[0], [row for row in rows if row.usable and row.keepable]
    if not usable:
        raise BadInput(
            "only torch itself runs this model here, and a module in memory cannot be kept in torch's own form.", do="give a factory: package.module:function"
        )
    level = contract.level
    readings = {id(row): tuple(read(row, original, limit, level, machine, test_size, sure) for limit in contract.limits()) for row in usable}
    feasible = [row for row in usable if all(reading.holds for reading in readings[id(row)])]
    limit = contract.limit("latency")
    name = limit.name if limit else "latency_p50"
    ranked = rank(feasible, name)
    if sure < SURE:
        ranked.sort(key=lambda row: max((reading.excess for reading in readings[id(row)] if reading.limit.quantity == "max_drop"), default=0.0))
    if ranked:
        return Solution(tuple(ranked), front(usable, original, name), name)
    nearest = min(usable, key=lambda row: distance(readings[id(row)]))
    found = readings[id(nearest)]
    return Solution((), front(usable, original, name), name, nearest, found, propose(contract, found))


def contenders(rows: Sequence[Row], contract: Contract, machine: str, test_size: int) -> list[Row]:
    """Usable rows, best first: those that keep every limit, then the others by how little they miss."""
    solution = solve(rows, contract, machine, test_size)
    limits = contract.limits()
    others = [row for row in rows if row.usable and row not in solution.ranked]
    missed = {id(row): distance([read(row, rows[0], limit, contract.level, machine, test_size) for limit in limits]) for row in others}
    return [*solution.ranked, *sorted(others, key=lambda row: missed[id(row)])]


def rank(rows: Sequence[Row], name: str) -> list[Row]:
    """Rows by latency; of rows that are equally fast (within 3 %) the one with the plainer padding, then the smaller, then the more accurate comes first."""
    left, ranked = list(rows), []
    while left:
        bar = EQUAL * min(latency_of(row, name) for row in left)
        equal = [row for row in left if latency_of(row, name) <= bar]
        best = min(equal, key=lambda row: (PLAINNESS.index(row.option.padding), row.size, -_accuracy(row)))
        ranked.append(best)
        left = [row for row in left if row is not best]
    return ranked


def _accuracy(row: Row) -> float:
    return 0.0 if row.scores is None else float(row.scores.mean())


def latency_of(row: Row, name: str) -> float:
    """The row's latency relative to the original of its own run: comparable between runs."""
    import numpy as np

    assert row.result is not None and row.original is not None
    if name == "latency_p95":
        return 1 / speedup(row.original, row.result, name, "any").value
    return float(np.median(np.asarray(row.result.rounds[name]) / np.asarray(row.original.rounds[name])))


def distance(readings: Sequence[Reading]) -> float:
    """How far a row is from the contract: the sum of logarithms of what it misses by."""
    return sum(math.log(min(reading.excess, 1e9)) for reading in readings if not reading.holds)


def front(rows: Sequence[Row], original: Row, name: str) -> tuple[Row, ...]:
    """Rows that no other row beats in accuracy, latency and size at once."""
    import numpy as np

    assert original.scores is not None
    points = [(row, float(np.mean(original.scores[: len(row.scores)] - row.scores)), latency_of(row, name), row.size) for row in rows if row.scores is not None]
    kept = []
    for row, *mine in points:
        beaten = any(all(t <= m for t, m in zip(theirs, mine, strict=True)) and theirs != mine for _, *theirs in points)
        if not beaten:
            kept.append(row)
    return tuple(kept)


def propose(contract: Contract, readings: Sequence[Reading]) -> Contract | None:
    """The contract with every limit that is missed, or kept only just, loosened to what the nearest row holds.

    None when a limit cannot be loosened: one on something that is not measured here.
    """
    update: dict[str, str] = {}
    for reading in readings:
        if reading.excess <= (1.0 if reading.limit.quantity == "max_drop" else 1 / MARGIN):
            continue  # kept with room to spare; what is kept only just is loosened too, or measuring again may miss it
        if not math.isfinite(reading.needed):
            return None
        update[reading.limit.quantity] = loosened(reading)
    return contract.model_copy(update=update)


def loosened(reading: Reading) -> str:
    """The missed limit as a user would write it, loose enough to hold when measured again."""
    limit = reading.limit
    percentile = "p95 " if limit.name == "latency_p95" else ""
    if limit.quantity == "max_drop":
        return f"{_round_up(max(reading.needed if reading.safe is None else reading.safe, 0.01), 2):g}{'%rel' if limit.relative else '%'}"
    if limit.relative:
        return f"{percentile}{_round_down(reading.needed / MARGIN, 2):g}x"
    return f"{percentile}{_round_up(reading.needed * MARGIN, 2):g}{limit.unit}"


def _round_up(value: float, digits: int) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return round(math.ceil(value / step - 1e-9) * step, 12)


def _round_down(value: float, digits: int) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return round(math.floor(value / step + 1e-9) * step, 12)
