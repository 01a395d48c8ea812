"""Rows as the manifest and the report tell them: what was tried, and one sentence on why it lost."""

from __future__ import annotations

from collections.abc import Sequence

from lissome.core.manifest import Tried
from lissome.core.measurement import Measurement
from lissome.core.statistics import certify_drop
from lissome.optimize.bench import Bench
from lissome.optimize.options import ORIGINAL
from lissome.optimize.solve import EQUAL, Solution, latency_of, read
from lissome.optimize.tables import Row
from lissome.optimize.verify import Fresh

ORIGINAL_WHY = "what you run today: torch, float32"


def describe_rows(bench: Bench, rows: Sequence[Row], solution: Solution, plan: Row, fresh: Fresh | None) -> list[Tried]:
    """All rows, the original first. The original and the chosen carry their fresh figures when they were measured again."""
    told = [_describe(bench, row, rows[0], solution, plan, fresh) for row in rows]
    if told[0].outcome == "chosen":  # the original won: it is told twice, as what it was and as what was taken
        told.insert(0, told[0].model_copy(update={"outcome": "original", "why": ORIGINAL_WHY}))
    return told


def _describe(bench: Bench, row: Row, original: Row, solution: Solution, plan: Row, fresh: Fresh | None) -> Tried:
    level, machine = bench.contract.level, bench.machine.fingerprint
    outcome, why = _outcome(bench, row, original, solution, plan, decided=fresh is not None)
    figures = row.result.figures(machine, level) if row.result is not None and row.result.failed is None else ()
    if fresh is not None and row is plan:
        figures = fresh.chosen
    elif fresh is not None and row is original:
        figures = fresh.original
    return Tried(
        option=row.option,
        outcome=outcome,  # type: ignore[arg-type]
        why="; ".join([why, *row.notes]),
        drop=drop_on_validation(bench, original, row),
        figures=figures,
        parity=row.parity.error if row.parity is not None and row.parity.error != float("inf") else None,
        on_front=row in solution.front,
    )


def _outcome(bench: Bench, row: Row, original: Row, solution: Solution, plan: Row, *, decided: bool) -> tuple[str, str]:
    if row is original and (row is not plan or not decided):
        return "original", ORIGINAL_WHY
    if row is plan and decided:
        return "chosen", "the fastest that keeps every limit" if row.option != ORIGINAL else "nothing faster keeps every limit"
    if row.skipped:
        return "skipped", row.trouble or ""
    if row.usable and not row.keepable:
        return "failed", "a module in memory cannot be kept in torch's own form; give a factory: package.module:function"
    if not row.usable:
        return "failed", row.trouble or "it was not measured"
    missed = [
        reading
        for reading in (
            read(row, original, limit, bench.contract.level, bench.machine.fingerprint, len(bench.task.splits["test"])) for limit in bench.contract.limits()
        )
        if not reading.holds
    ]
    if missed:
        return "over limit", "misses " + " and ".join(str(reading.limit) for reading in missed)
    if decided and row in solution.ranked and solution.ranked.index(row) < solution.ranked.index(plan):
        return "dominated", "first in the tables"  # its note says why it was passed over
    if latency_of(row, solution.name) <= EQUAL * latency_of(plan, solution.name):
        return "dominated", f"keeps every limit and is as fast as {plan.option.name}, which is plainer or smaller"
    return "dominated", f"keeps every limit, but {plan.option.name} is faster"


def drop_on_validation(bench: Bench, original: Row, row: Row) -> Measurement | None:
    """The accuracy drop on the validation split with its one-sided bounds: points for 0/1 scores, else the score's own unit times 100."""
    if row.scores is None or original.scores is None:
        return None
    limit = bench.contract.limit("max_drop")
    before = original.scores[: len(row.scores)]
    test = certify_drop(before, row.scores, limit.bound / 100 if limit and not limit.relative else 0.01, bench.contract.level, bench.task.exact, bench.seed)
    return Measurement("drop", 100 * test.drop, 100 * test.low, 100 * test.upper, "pt", test.n, "measured", bench.machine.fingerprint, 2 * test.confidence - 1)
