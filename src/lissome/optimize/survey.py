"""The survey: every way to run the model as it is, built, scored and timed."""

from __future__ import annotations

from lissome.core.cache import digest
from lissome.core.manifest import Tried
from lissome.optimize.bench import Bench
from lissome.optimize.options import ORIGINAL, padded, whole_model_options
from lissome.optimize.solve import contenders
from lissome.optimize.tables import Row, build_rows, measure_rows, score_fully

PADDED = 2
"""How many of the best rows are also tried with other padding."""


def survey(bench: Bench) -> tuple[list[Row], list[Tried]]:
    """Every option built, gated, scored and timed: the original first, then the others; and the options skipped."""
    options, skipped = whole_model_options(bench.machine)
    question = digest("question-1", bench.key(ORIGINAL), bench.task.fingerprint, bench.contract.model_dump(), bench.seed)
    answered = bench.cache.get("answers", question)
    rows = build_rows(bench, options, answered["passed_over"] if answered else ())
    measure_rows(bench, rows, rows[0])
    fast = finalists(bench, rows)
    more = padded([row.option for row in fast if row is not rows[0]], bench.task)
    if more and (answered["padded"] if answered else not bench.time_is_up()):
        extra = build_rows(bench, more)[1:]
        # The rows without padding run once more beside theirs: small differences only show within one run.
        measure_rows(bench, [rows[0], *fast, *extra], rows[0])
        for row in extra:
            row.notes.append("accuracy as without padding")
        rows += extra
    finalists(bench, rows)
    bench.cache.put("answers", question, {"passed_over": [row.option.name for row in rows if row.skipped], "padded": any(row.notes for row in rows)})
    return rows, skipped


def finalists(bench: Bench, rows: list[Row]) -> list[Row]:
    """The best rows, each scored on the whole validation split: one that only looked good on the screening part makes way for the next."""
    whole = len(bench.task.splits["validation"])
    while True:
        best = contenders(rows, bench.contract, bench.machine.fingerprint, len(bench.task.splits["test"]))[:PADDED]
        screened = [row for row in best if row.scores is not None and len(row.scores) < whole]
        if not screened:
            return best
        bench.progress.stage(f"scoring {', '.join(row.option.name for row in screened)} on all of the validation split")
        for row in screened:
            score_fully(bench, row)
