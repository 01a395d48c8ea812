"""The verdict: original and chosen measured afresh, side by side, and the test split used once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lissome.core.cache import Cache, digest
from lissome.core.contract import Clause, Contract, Limit, Verdict
from lissome.core.measurement import Measurement, digits
from lissome.core.statistics import DropTest, certify_drop, more_examples
from lissome.engines.measure import measure, speedup
from lissome.engines.process import EngineFailed
from lissome.optimize.bench import Bench, outputs
from lissome.optimize.options import ORIGINAL
from lissome.optimize.tables import Row, free_ram, subject

ROUNDS = 21
MEMORY_RUNS = 3
"""Fresh processes whose peak memory is taken: the interval is their smallest and largest."""


@dataclass(frozen=True)
class Fresh:
    """The final measurement: original and chosen from one interleaved run of fresh processes."""

    original: tuple[Measurement, ...]
    chosen: tuple[Measurement, ...]
    speedups: tuple[Measurement, ...]
    noise: str


def measure_again(bench: Bench, original: Row, chosen: Row) -> Fresh:
    """Measure both again with more rounds; choosing the fastest of many rows favours lucky ones, so their figures are not reused."""
    machine, level = bench.machine.fingerprint, bench.contract.level
    subjects = [subject(bench, original), subject(bench, chosen)]
    run = measure(subjects, machine, rounds=ROUNDS, threads=bench.threads, ram_mb=free_ram(bench), progress=bench.progress)
    before, after = run.results
    for result in run.results:
        if result.failed:
            raise EngineFailed(f"{result.subject.name} failed when it was measured again: {result.failed}")
    peaks = [after.memory_mb]
    for _ in range(MEMORY_RUNS - 1):
        again = measure(subjects[1:], machine, rounds=1, threads=bench.threads)
        peaks.append(again.results[0].memory_mb)
    chosen_figures = tuple(_with_range(f, peaks) if f.name == "memory" else f for f in after.figures(machine, level))
    speedups = tuple(speedup(before, after, name, machine, level) for name in ("latency_p50", "latency_p95"))
    return Fresh(before.figures(machine, level), chosen_figures, speedups, run.noise.sentence)


def _with_range(figure: Measurement, values: Sequence[float]) -> Measurement:
    middle = sorted(values)[len(values) // 2]
    return Measurement(figure.name, middle, min(values), max(values), figure.unit, len(values), figure.method, figure.machine, figure.confidence)


@dataclass(frozen=True)
class Tested:
    """What the test split said. original, chosen: mean scores in percent. seen: plans this split has judged for this model, this one included."""

    drop: DropTest
    original: Measurement
    chosen: Measurement
    seen: int


def judge_on_test(bench: Bench, original: Row, chosen: Row, *, anew: bool = False) -> Tested:
    """Score original and chosen on the test split, exactly as they will run, and test the drop. anew: run the chosen whatever is cached."""
    import numpy as np

    bench.progress.stage("the test split, once", 2)
    split = bench.task.splits["test"]
    assert original.form is not None and chosen.form is not None
    before = bench.task.score(outputs(bench, ORIGINAL, original.form, "test"), split.targets)
    bench.progress.step()
    after = bench.task.score(outputs(bench, chosen.option, chosen.form, "test", as_deployed=True, anew=anew), split.targets)
    bench.progress.step()
    limit = bench.contract.limit("max_drop")
    margin = limit.bound / 100 if limit else 0.01  # without a limit the test only describes
    relative = bool(limit and limit.relative)
    drop = certify_drop(before, after, margin, bench.contract.level, bench.task.exact, bench.seed, relative)
    seen = record_use(bench.cache, bench.task.fingerprint, bench.model.fingerprint, chosen.option.name)
    machine = bench.machine.fingerprint
    return Tested(drop, _mean(np.asarray(before), bench, machine, "score"), _mean(np.asarray(after), bench, machine, "score"), seen)


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


def record_use(cache: Cache, task: str, model: str, plan: str) -> int:
    """Note that the test split judged `plan`; return how many different plans it has judged for this model."""
    key = digest("ledger", task, model)
    plans = set(cache.get("ledger", key) or ())
    plans.add(plan)
    cache.put("ledger", key, sorted(plans))
    return len(plans)


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
        "drop", 100 * drop.drop, 100 * drop.low, 100 * drop.upper, "%" if limit.relative else "pt", drop.n, "measured", tested.original.machine, drop.confidence
    )
    sentence = (
        f"{limit} ({drop.confidence:.0%}): measured {100 * drop.drop:.2f}, upper bound {100 * drop.upper:.2f} {unit}, n = {drop.n:,} test examples, {seen}"
    )
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
    if after.method == "estimated":
        return Clause(
            limit=str(limit), status="cannot certify", figure=after, original=before, sentence=f"{limit}: {after}; an estimate cannot satisfy a contract"
        )
    factor = next((s for s in fresh.speedups if s.name == f"speedup_{limit.name}"), None)
    if factor is None:
        factor = Measurement(
            limit.name, before.value / after.value, before.low / after.high, before.high / after.low, "x", after.n, after.method, after.machine, level
        )
    holds = factor.low >= limit.bound if limit.relative else after.high <= limit.bound
    sentence = f"{limit}: {after}, was {digits(before.value)} ({digits(factor.value)}x [{digits(factor.low)}, {digits(factor.high)}])"
    return Clause(limit=str(limit), status="met" if holds else "not met", figure=after, original=before, sentence=sentence)
