"""The verdict: original and chosen measured afresh, side by side, and the test split used once."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from lissome.core.cache import record_use
from lissome.core.contract import Clause, Contract, Limit, Verdict
from lissome.core.measurement import Measurement, digits
from lissome.core.statistics import DropTest, achieved_confidence, certify_drop, median_interval, more_examples
from lissome.engines.measure import P95_CALLS, Result, speedup, times_below
from lissome.engines.process import EngineFailed
from lissome.optimize.bench import Bench, original_form, outputs
from lissome.optimize.options import ORIGINAL
from lissome.optimize.solve import read_cost
from lissome.optimize.tables import Row, kept_run, subject

ROUNDS, NEAR_ROUNDS = 15, 31
NEAR = 0.9
"""A limit on latency of which the tables say that more than this share is used is measured in NEAR_ROUNDS: fewer could not tell whether it is kept."""
RECENT_S = 3600.0
"""A final measurement counts for later contracts that choose the same way, until the machine may be another one: busier, warmer, updated."""
KEPT = "final-1"
"""Name of the final measurements in the cache."""
MEMORY_RUNS = 3
"""Fresh processes whose peak memory is taken when no limit asks for more: the interval is their smallest and largest."""


@dataclass(frozen=True)
class Fresh:
    """The final measurement: original and chosen from one interleaved run of fresh processes."""

    original: tuple[Measurement, ...]
    chosen: tuple[Measurement, ...]
    speedups: tuple[Measurement, ...]
    noise: str


def measure_again(bench: Bench, original: Row, chosen: Row, *, anew: bool = False) -> Fresh:
    """Measure both again with more rounds; choosing the fastest of many rows favours lucky ones, so their figures are not reused.

    What an earlier contract's verdict measured of these two in the last RECENT_S is not luck, and is. anew: measure whatever was measured before.
    """
    machine, level = bench.machine.fingerprint, bench.contract.level
    since = math.inf if anew else time.time() - RECENT_S
    rows, subjects = [original, chosen], [subject(bench, original, final=True), subject(bench, chosen, final=True)]
    rounds = rounds_needed(bench.contract, len(subjects[0].batches), _is_near(bench, chosen))
    results, noise = kept_run(bench, rows, subjects, rounds, KEPT, since)
    for result in results:
        if result.failed:
            raise EngineFailed(f"{result.subject.name} failed when it was measured again: {result.failed}")
    before, after = results
    speedups = tuple(speedup(before, after, name, machine, level) for name in ("latency_p50", "latency_p95"))
    figures = []
    for row, result in zip(rows, results, strict=True):
        figures.append(tuple(_weighed_again(bench, row, result, f, since) if f.name == "memory" else f for f in result.figures(machine, level)))
    return Fresh(figures[0], figures[1], speedups, noise)


def _is_near(bench: Bench, chosen: Row) -> bool:
    """Whether a limit on latency is nearly used up, by what was measured before; so it is taken to be where nothing was."""
    limit = bench.contract.limit("latency")
    if limit is None or chosen.result is None or chosen.original is None:
        return limit is not None
    return read_cost(chosen, limit, bench.contract.level, bench.machine.fingerprint).excess > NEAR


def rounds_needed(contract: Contract, batches: int, near: bool = False) -> int:
    """Rounds that give the confidence asked for; for a limit on p95 as many as its calls take. near: a limit on latency is nearly used up."""
    limit = contract.limit("latency")
    rounds = max(NEAR_ROUNDS if near else ROUNDS, runs_for(contract.level))
    return max(rounds, -(-P95_CALLS // batches)) if limit and limit.name == "latency_p95" else rounds


def runs_for(level: float) -> int:
    """Least number of independent values whose smallest and largest enclose the median with probability `level`: 1 - 2^(1 - n) of the time they do."""
    return 1 + math.ceil(-math.log2(1 - level) - 1e-9)


def _weighed_again(bench: Bench, row: Row, result: Result, figure: Measurement, since: float) -> Measurement:
    """Peak memory over fresh processes: as many as a limit on memory takes, a few for the chosen without one, once for the original."""
    limit = bench.contract.limit("memory")
    wanted = result.subject.form != original_form(bench) or bool(limit and limit.relative)
    runs = runs_for(bench.contract.level) if limit and wanted else MEMORY_RUNS if wanted else 1
    peaks = [result.memory_mb]
    for repeat in range(1, runs):
        (again,), _ = kept_run(bench, [row], [result.subject], 1, KEPT, since, repeat)
        if again.failed:
            raise EngineFailed(f"{again.subject.name} failed when its memory was measured again: {again.failed}")
        peaks.append(again.memory_mb)
    value, low, high = median_interval(peaks, figure_level := bench.contract.level)
    reached = min(figure_level, achieved_confidence(len(peaks), figure_level))
    return Measurement(figure.name, value, low, high, figure.unit, len(peaks), figure.method, figure.machine, reached)


@dataclass(frozen=True)
class Tested:
    """What the test split said. original, chosen: mean scores in percent. seen: plans this split has judged for this model, this one included."""

    drop: DropTest
    original: Measurement
    chosen: Measurement
    seen: int


def judge_on_test(bench: Bench, original: Row, chosen: Row, *, anew: bool = False, seen: int | None = None) -> Tested:
    """Score the original, and the chosen exactly as it will run, on the test split, and test the drop.

    anew: run the chosen whatever is cached. seen: plans that the split has judged, where that is known; else the ledger counts this one.
    """
    import numpy as np

    bench.progress.stage("the test split, once", 2)
    split = bench.task.splits["test"]
    assert original.form is not None and chosen.form is not None
    before = bench.task.score(outputs(bench, ORIGINAL, original.form, "test"), split.targets)
    bench.progress.step()
    after = bench.task.score(outputs(chosen.home(bench), chosen.option, chosen.form, "test", as_deployed=True, anew=anew), split.targets)
    bench.progress.step()
    limit = bench.contract.limit("max_drop")
    margin = limit.bound / 100 if limit else 0.01  # without a limit the test only describes
    relative = bool(limit and limit.relative)
    if seen is None:
        name = chosen.option.name + (f" ({_contents(chosen.variant.bench)})" if chosen.variant else "")
        seen = record_use(bench.cache, bench.task.fingerprint, bench.model.fingerprint, name)
    level = 1 - (1 - bench.contract.level) / seen  # each further plan judged by this split has to clear a higher bar
    drop = certify_drop(before, after, margin, level, bench.task.exact, bench.seed, relative)
    machine = bench.machine.fingerprint
    return Tested(drop, _mean(np.asarray(before), bench, machine, "score"), _mean(np.asarray(after), bench, machine, "score"), seen)


def _contents(bench: Bench) -> str:
    """What a changed copy computes, scales and precisions included."""
    return bench.quantized.fingerprint if bench.quantized else bench.model.fingerprint


def _mean(scores: object, bench: Bench, machine: str, name: str) -> Measurement:
    """Mean score with its interval: exact for 0/1 scores (in %), normal otherwise (in the score's own unit)."""
    import numpy as np

    from lissome.core.statistics import proportion_interval

    values = np.asarray(scores, dtype=np.float64)
    level = bench.contract.level
    if bench.task.exact:
        value, low, high = proportion_interval(int(values.sum()), len(values), level)
        return Measurement(name, 100 * value, 100 * low, 100 * high, "%", len(values), "measured", machine, level)
    from statistics import NormalDist

    half = NormalDist().inv_cdf((1 + level) / 2) * float(values.std(ddof=1)) / len(values) ** 0.5
    return Measurement(name, float(values.mean()), float(values.mean()) - half, float(values.mean()) + half, "score", len(values), "measured", machine, level)


def judge(contract: Contract, fresh: Fresh, tested: Tested) -> Verdict:
    """Hold the fresh figures against every limit; the interval, not the point, must keep it."""
    clauses = []
    for limit in contract.limits():
        if limit.quantity == "max_drop":
            clauses.append(drop_clause(limit, tested))
        else:
            clauses.append(figure_clause(limit, fresh, contract.level))
    failed = [clause for clause in clauses if clause.status != "met"]
    if failed:
        return Verdict(status="not met", clauses=tuple(clauses), summary=f"Not met: {failed[0].sentence}")
    return Verdict(status="met", clauses=tuple(clauses), summary="Every limit is met, measured on this machine and on unused data.")


def drop_clause(limit: Limit, tested: Tested) -> Clause:
    """The clause on accuracy: certified by the paired test, or how many examples it would take."""
    drop, unit = tested.drop, "% of the original's score" if limit.relative else "pt"
    seen = "seen once" if tested.seen == 1 else f"seen {tested.seen} times"
    figure = Measurement(
        "drop",
        100 * drop.drop,
        100 * drop.low,
        100 * drop.upper,
        "%" if limit.relative else "pt",
        drop.n,
        "measured",
        tested.original.machine,
        2 * drop.confidence - 1,
    )
    found = f"measured {100 * drop.drop:.2f}, upper bound {100 * drop.upper:.2f} {unit}"
    sentence = f"{limit} ({100 * drop.confidence:.3g} %): {found}, n = {drop.n:,} test examples, {seen}"
    if drop.certified:
        return Clause(limit=str(limit), status="met", figure=figure, original=tested.original, sentence=sentence)
    if drop.drop < drop.margin:
        needed = more_examples(drop)
        count = f"about {needed:,} test examples would be needed" if needed else "no practical number of test examples would do"
        return Clause(limit=str(limit), status="cannot certify", figure=figure, original=tested.original, sentence=f"{sentence}; too few to certify: {count}")
    return Clause(limit=str(limit), status="not met", figure=figure, original=tested.original, sentence=sentence)


def figure_clause(limit: Limit, fresh: Fresh, level: float) -> Clause:
    """The clause on a measured figure."""
    before = next((f for f in fresh.original if f.name == limit.name), None)
    after = next((f for f in fresh.chosen if f.name == limit.name), None)
    if before is None or after is None:
        return Clause(limit=str(limit), status="cannot certify", figure=None, original=None, sentence=f"{limit}: there is no counter for it on this machine")
    if after.method == "measured" and min(after.confidence, before.confidence if limit.relative else 1.0) < level - 1e-9:
        short = f"{after.n} repetitions do not reach {level:g} confidence"
        return Clause(limit=str(limit), status="cannot certify", figure=after, original=before, sentence=f"{limit}: {after}; {short}")
    if after.method == "estimated":
        return Clause(
            limit=str(limit), status="cannot certify", figure=after, original=before, sentence=f"{limit}: {after}; an estimate cannot satisfy a contract"
        )
    factor = next((s for s in fresh.speedups if s.name == f"speedup_{limit.name}"), None)
    if factor is None:
        factor = times_below(before, after, level)
    holds = factor.low >= limit.bound if limit.relative else after.high <= limit.bound
    sentence = f"{limit}: {after}, was {digits(before.value)} ({digits(factor.value)}x [{digits(factor.low)}, {digits(factor.high)}])"
    return Clause(limit=str(limit), status="met" if holds else "not met", figure=after, original=before, sentence=sentence)
