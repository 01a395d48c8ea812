"""`optimize`: from a model, a task and a contract to an artifact with a verdict, or to a proof that it cannot be done here."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from lissome.core.cache import Cache
from lissome.core.contract import Clause, Contract, Verdict
from lissome.core.errors import BadTask, EnvironmentLacks
from lissome.core.manifest import Manifest, ModelInfo, TaskInfo, Tried
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.core.statistics import certify_drop
from lissome.core.task import LANGUAGE, Task
from lissome.data.fingerprint import data_fingerprint
from lissome.engines.measure import fine_meter
from lissome.engines.process import EngineFailed
from lissome.machine.energy import find_meter
from lissome.machine.identity import identify
from lissome.machine.versions import versions
from lissome.optimize.artifact import check_out, write_artifact
from lissome.optimize.bench import Bench, make_bench
from lissome.optimize.describe import describe_rows, drop_on_validation
from lissome.optimize.escalate import escalate
from lissome.optimize.solve import Reading, Solution, solve
from lissome.optimize.survey import survey
from lissome.optimize.tables import Row
from lissome.optimize.verify import Fresh, Tested, figure_clause, judge, judge_on_test, measure_again
from lissome.version import VERSION

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Optimized:
    """manifest: everything learned. folder: the artifact; None when the contract is infeasible (there is nothing to keep)."""

    manifest: Manifest
    folder: Path | None

    @property
    def verdict(self) -> Verdict:
        """The verdict on the contract."""
        return self.manifest.verdict


def optimize(
    model: Model | nn.Module | str,
    task: Task | str,
    contract: Contract,
    *,
    out: Path | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Optimized:
    """Find the best way to run `model` on this machine that keeps `contract`, and verify it on the task's test split.

    model: a Model, a module, or what `lissome.load_model` takes. task: a Task, a YAML file or "package.module:function".
    out: folder of the artifact, made; by default runs/<key> below the current folder.
    Raises BadInput for a model, task or contract that cannot be used, EnvironmentLacks where something outside is missing.
    """
    begun = time.perf_counter()
    progress, cache = progress or Silent(), cache or Cache()
    check_out(out)
    cache.sweep()
    bench = prepared(model, task, contract, cache, progress, seed)
    check_certifiable(bench)
    rows, skipped = survey(bench)
    machine, test_size = bench.machine.fingerprint, len(bench.task.splits["test"])
    solution = solve(rows, contract, machine, test_size)
    if not solution.ranked:
        solution = escalate(bench, rows, solution)
    if not solution.ranked:
        verdict = infeasible(bench, solution, rows)
        plan = solution.nearest or rows[0]
        manifest = _manifest(bench, rows, skipped, solution, plan, verdict, None, None, time.perf_counter() - begun)
        return Optimized(manifest, None)
    chosen, fresh = _holds_again(bench, rows[0], solution)
    tested = judge_on_test(bench, rows[0], chosen)
    verdict = judge(contract, fresh, tested)
    manifest = _manifest(bench, rows, skipped, solution, chosen, verdict, fresh, tested, time.perf_counter() - begun)
    progress.stage("writing the artifact")
    folder = write_artifact(bench, chosen, manifest, out)
    return Optimized(manifest, folder)


def prepared(model: Model | nn.Module | str, task: Task | str, contract: Contract, cache: Cache, progress: Progress, seed: int) -> Bench:
    """The bench for what the user gave, loaded and checked."""
    from lissome.data import load_task
    from lissome.nn.load import as_model, load_model

    progress.stage("reading the model and the task")
    loaded = load_model(model) if isinstance(model, str) else as_model(model)
    known = load_task(task, loaded.directory) if isinstance(task, str) else task
    if known.kind == LANGUAGE:
        raise BadTask(
            "optimize compares every example's outputs, and a language model's are as many as its tokens times its words.",
            where=known.ref,
            expected="a task with one answer an example",
            do="use `lissome sparsify` for its attention, and `lissome pack` for 4-bit weights",
        )
    return make_bench(loaded, known, contract, identify(), cache, progress, seed)


def check_certifiable(bench: Bench) -> None:
    """Before any work: refuse an energy limit that nothing here can measure, and warn of a test split that is small for the drop asked for."""
    if bench.contract.limit("energy") is not None and fine_meter() is None:
        state = find_meter().available()
        reason = "its energy counter is too coarse for single calls." if state else state.reason
        raise EnvironmentLacks(
            f"an energy limit cannot be certified here: {reason}",
            expected="an energy counter that can be read, such as RAPL",
            do="leave --energy out, or run where one can be read",
        )
    limit = bench.contract.limit("max_drop")
    if limit is None or not bench.task.exact or limit.relative:
        return
    import numpy as np

    same = np.ones(len(bench.task.splits["test"]))
    best = certify_drop(same, same, limit.bound / 100, bench.contract.level, True)
    if not best.certified:
        bench.progress.say(
            f"The test split is small for this limit: with {best.n:,} examples, a model that never differs from the original is certified a drop of "
            f"{100 * best.upper:.2g} pt, not {limit.bound:g}; only one that gains could pass."
        )


def _holds_again(bench: Bench, original: Row, solution: Solution) -> tuple[Row, Fresh]:
    """The first ranked row whose limits on speed and memory hold when measured again; else the first, whose miss the verdict then states.

    The test split is not touched here, so trying the next row costs nothing of its worth.
    """
    first: tuple[Row, Fresh] | None = None
    assert original.scores is not None
    known = [row for row in solution.ranked if row.scores is not None and len(row.scores) == len(original.scores)]
    for row in known[:3]:
        try:
            fresh = measure_again(bench, original, row)
        except EngineFailed as error:
            row.trouble = error.what
            continue
        first = first or (row, fresh)
        if all(figure_clause(limit, fresh, bench.contract.level).status == "met" for limit in bench.contract.costs()):
            return row, fresh
        row.notes.append("kept the limits in the tables but not when measured again")
    if first is None:
        raise EngineFailed("none of the ways that keep the limits could be measured again")
    return first


def infeasible(bench: Bench, solution: Solution, rows: Sequence[Row]) -> Verdict:
    """The verdict when no row keeps every limit: what limits it, and the nearest contract that is kept, as a command."""
    usable = [row for row in rows if row.usable]
    clauses = []
    for reading in solution.readings:
        status = "met" if reading.holds else "not met"
        clauses.append(
            Clause(limit=str(reading.limit), status=status, figure=reading.figure, original=None, sentence=f"{reading.limit}: {_reach(reading)}")  # type: ignore[arg-type]
        )
    missed = [reading for reading in solution.readings if not reading.holds]
    worst = max(missed, key=lambda reading: reading.excess)
    assert solution.nearest is not None
    summary = (
        f"None of the {len(usable)} ways to run this model here keeps every limit. What limits it: {worst.limit}. "
        f"The nearest is {solution.nearest.option.name}: {_reach(worst)}."
    )
    nearest = None if solution.proposal is None else replay(bench, solution.proposal)
    return Verdict(status="infeasible", clauses=tuple(clauses), summary=summary, nearest=nearest)


def _reach(reading: Reading) -> str:
    if reading.limit.quantity == "max_drop":
        return f"reaches {reading.needed:.2g}{' % of the original score' if reading.limit.relative else ' pt'} (what this test split would certify)"
    if reading.figure is None:
        return "cannot be measured here"
    return f"reaches {reading.figure}"


def replay(bench: Bench, contract: Contract) -> str:
    """The command line that asks for `contract` with this model and task."""
    words = ["lissome", "optimize", bench.model.ref, "--task", bench.task.ref]
    for name in ("max_drop", "latency", "memory", "size", "energy", "spend", "ram"):
        value = getattr(contract, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", value]
    if contract.confidence != "95%":
        words += ["--confidence", contract.confidence]
    if contract.batch != 1:
        words += ["--batch", str(contract.batch)]
    if bench.seed:
        words += ["--seed", str(bench.seed)]
    return shlex.join(words)


def _manifest(
    bench: Bench,
    rows: Sequence[Row],
    skipped: Sequence[Tried],
    solution: Solution,
    plan: Row,
    verdict: Verdict,
    fresh: Fresh | None,
    tested: Tested | None,
    seconds: float,
) -> Manifest:
    model, task = bench.model, bench.task
    machine = bench.machine.model_copy(update={"noise": fresh.noise if fresh else rows[0].noise})
    certified = next((clause.figure for clause in verdict.clauses if clause.figure and clause.figure.name == "drop"), None)
    return Manifest(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        lissome=VERSION,
        model=ModelInfo(ref=model.ref, fingerprint=model.fingerprint, architecture=model.architecture, inputs=bench.recipe.inputs),
        task=TaskInfo(
            ref=task.ref,
            name=task.name,
            kind=task.kind,
            fingerprint=task.fingerprint,
            sizes=task.sizes(),
            classes=task.classes,
            data=data_fingerprint(task),
        ),
        contract=bench.contract,
        verdict=verdict,
        plan=plan.option,
        machine=machine,
        original_score=tested.original if tested else None,
        chosen_score=tested.chosen if tested else None,
        drop=certified if tested else drop_on_validation(bench, rows[0], plan),
        tried=(*describe_rows(bench, rows, solution, plan, fresh), *skipped),
        parts=plan.variant.parts if plan.variant else (),
        steps=plan.variant.steps if plan.variant else (),
        seen=tested.seen if tested else 0,
        seed=bench.seed,
        spent_seconds=round(seconds, 1),
        versions=versions(),
        replay=replay(bench, bench.contract),
    )
