"""A contract that no precision of the whole model can keep, and what the planner makes of it, beside the best whole-model ways in one interleaved run.

    python benchmarks/planner.py minilm [--json] [--write docs/benchmarks.md] [--rounds 21]

minilm: the demo's sentiment classifier, batch 1, 6x faster at a drop of at most one point; minilm-batch: batch 32, 10x. minilm-hybrid: a drop of at most
0.3 points, 1.72x faster, 2.4x less memory. mnist: a CNN, 0.2 points, 4x faster and 8x smaller. The contract is given to `optimize` with an empty cache;
then original, peers and the artifact run once more together, a process each, in rotating order. Peers: engines with one precision throughout, the same
share cut everywhere (taught as long, at equal latency), and NNCF's accuracy-aware quantisation.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "name": str, "contract": {...}, "verdict": str,
"clauses": [str], "plan": str, "steps": [str], "seconds": float, "second": {"verdict": str, "seconds": float}, "noise": str, "best_peer": str,
"ahead_of_best": figure, "gain_over_uniform_pt": figure, "rows": [{"name": str, "latency_p50": figure, "speedup": figure, "memory_mb": float,
"memory_less_pct": float, "size_mb": float, "smaller": float, "score": percent, "drop_pt": figure, "minutes": float}]} with figure = {"value", "low",
"high", "unit", "n"}, null where there is none. speedup is against torch fp32, drop_pt on the test split with one-sided bounds at 95 % each. best_peer: the
fastest peer that keeps the limit on accuracy. seconds, minutes: of finding the plan; second: until the next verdict.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines import accuracy_controlled, uniformly_pruned
from lissome.core.cache import Cache
from lissome.core.contract import Contract
from lissome.core.errors import LissomeError
from lissome.core.manifest import Option
from lissome.core.model import Model
from lissome.core.progress import Progress
from lissome.core.statistics import certify_drop
from lissome.core.task import Task
from lissome.engines.measure import measure, speedup
from lissome.export.forms import form_bytes
from lissome.machine.identity import identify
from lissome.optimize.bench import Bench, make_bench, outputs
from lissome.optimize.demo import sentiment
from lissome.optimize.options import ORIGINAL
from lissome.optimize.run import Optimized, optimize
from lissome.optimize.tables import Row, built, subject
from lissome.report.markdown import markdown_table
from publishing import Document, made_on, on, options, plain, points, publish, spread
from vision_models import mnist

PEERS = [
    ("torch fp32 (eager)", ORIGINAL),
    ("ONNX Runtime fp32", Option(engine="onnxruntime", precision="fp32")),
    ("ONNX Runtime int8 dynamic", Option(engine="onnxruntime", precision="int8-dynamic")),
    ("OpenVINO bf16", Option(engine="openvino", precision="bf16")),
    ("OpenVINO NNCF int8", Option(engine="openvino", precision="int8-static")),
]
OURS, CONTROLLED = "lissome", "NNCF with accuracy control"


@dataclass(frozen=True)
class Case:
    """A contract to try. make: model and task; second: what is asked next, of the same model on the same machine; uniform: whether the same cut everywhere,
    taught as long, runs beside it."""

    make: Callable[[Cache, Progress], tuple[Model, Task]]
    contract: Contract
    second: Contract
    uniform: bool = True


CASES = {
    "minilm": Case(sentiment, Contract(max_drop="1%", latency="6x"), Contract(max_drop="1.5%", latency="6x")),
    "minilm-batch": Case(sentiment, Contract(max_drop="1%", latency="10x", batch=32), Contract(max_drop="1.5%", latency="10x", batch=32), False),
    "minilm-hybrid": Case(
        sentiment, Contract(max_drop="0.3%", latency="1.72x", memory="2.4x"), Contract(max_drop="0.5%", latency="1.72x", memory="2.4x"), False
    ),
    "mnist": Case(mnist, Contract(max_drop="0.2%", latency="4x", size="8x"), Contract(max_drop="0.3%", latency="4x", size="8x")),
}


def run(name: str, rounds: int, warm: bool, progress: Progress) -> Document:
    """The whole benchmark as its JSON document."""
    shared, machine, case = Cache(), identify(), CASES[name]
    model, task = case.make(shared, progress)
    with tempfile.TemporaryDirectory(prefix="lissome-") as folder:
        scratch = Path(folder)
        cache = shared if warm else Cache(scratch / "cache")
        result = optimize(model, task, case.contract, out=scratch / "artifact", cache=cache, progress=progress)
        begun = time.perf_counter()
        second = optimize(model, task, case.second, out=scratch / "second", cache=cache, progress=progress)
        seconds = time.perf_counter() - begun
        bench = make_bench(model, task, case.contract, machine, cache, progress)
        found = describe(name, result) | {"second": {"verdict": second.verdict.status, "seconds": seconds}}
        return on(machine) | found | compare(bench, result, rounds, scratch, case.uniform)


def describe(name: str, result: Optimized) -> Document:
    """What came of a contract."""
    manifest = result.manifest
    return {
        "name": name,
        "contract": manifest.contract.model_dump(exclude_none=True),
        "verdict": result.verdict.status,
        "clauses": [clause.sentence for clause in result.verdict.clauses],
        "plan": manifest.plan.name,
        "steps": list(manifest.steps),
        "seconds": manifest.spent_seconds,
    }


def compare(bench: Bench, result: Optimized, rounds: int, scratch: Path, beside_uniform: bool) -> Document:
    """Original, peers and artifact in one interleaved run, on other examples than those the plan was chosen with."""
    machine, level = bench.machine.fingerprint, bench.contract.level
    rows = {name: row for name, option in PEERS if (row := _peer(bench, option)) is not None}
    minutes: dict[str, float] = {OURS: result.manifest.spent_seconds / 60}
    limit = bench.contract.limit("max_drop")
    assert limit is not None
    try:
        rows[CONTROLLED], seconds = accuracy_controlled(bench, limit.bound / 100, scratch / "controlled")
        minutes[CONTROLLED] = seconds / 60
    except Exception as error:  # noqa: BLE001  a peer may raise anything, and its row is then left out
        bench.progress.say(f"{CONTROLLED} failed: {error}")
    uniform = None
    if result.folder is not None:
        form = result.folder / "engine"
        plan = Row(result.manifest.plan, form, form_bytes(form))
        uniform = _uniform(bench, result, plan) if beside_uniform else None
        rows |= {uniform[0]: uniform[1]} if uniform else {}
        rows[OURS] = plan
    run = measure([subject(bench, row, final=True) for row in rows.values()], machine, rounds=rounds, threads=bench.threads, progress=bench.progress)
    results = {name: one for name, one in zip(rows, run.results, strict=True) if not one.failed}
    right = {name: scores(bench, rows[name]) for name in results}
    first = next(iter(rows))
    drops = {name: certify_drop(right[first], one, limit.bound / 100, level, bench.task.exact) for name, one in right.items()}
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "latency_p50": plain(figures["latency_p50"]),
            "speedup": plain(speedup(results[first], one, "latency_p50", machine, level)),
            "memory_mb": figures["memory"].value,
            "memory_less_pct": 100 * (1 - figures["memory"].value / results[first].memory_mb),
            "size_mb": figures["size"].value,
            "smaller": rows[first].size / rows[name].size,
            "score": 100 * float(right[name].mean()),
            "drop_pt": points(drops[name]),
            "minutes": minutes.get(name),
        }
        for name, one in results.items()
        for figures in [{figure.name: figure for figure in one.figures(machine)}]
    ]
    compared: dict[str, Any] = {"noise": run.noise.sentence, "rows": found, "best_peer": None, "ahead_of_best": None, "gain_over_uniform_pt": None}
    if OURS not in results:
        found.append(dict.fromkeys(found[0]) | {"name": OURS, "minutes": minutes[OURS]})
        return compared
    keeping = [name for name in results if name != OURS and (uniform is None or name != uniform[0]) and drops[name].certified]
    best = min(keeping, key=lambda name: statistics.median(results[name].rounds["latency_p50"]))
    compared |= {"best_peer": best, "ahead_of_best": plain(speedup(results[best], results[OURS], "latency_p50", machine, level))}
    if uniform and uniform[0] in results:
        compared["gain_over_uniform_pt"] = points(certify_drop(right[OURS], right[uniform[0]], limit.bound / 100, level, bench.task.exact))
    return compared


def _uniform(bench: Bench, result: Optimized, plan: Row) -> tuple[str, Row] | None:
    try:
        return uniformly_pruned(bench, result, plan)
    except LissomeError as error:
        bench.progress.say(f"uniform pruning failed: {error.what}")
        return None


def scores(bench: Bench, row: Row) -> Any:
    """Scores [n] of a row on the test split, as it will run."""
    assert row.form is not None
    split = bench.task.splits["test"]
    return bench.task.score(outputs(bench, row.option, row.form, "test", as_deployed=True, anew=True), split.targets)


def _peer(bench: Bench, option: Option) -> Row | None:
    try:
        return built(bench, option)
    except LissomeError:
        return None


def table(document: Document) -> str:
    """A paragraph and a table."""
    rows = [
        [
            row["name"],
            spread(row["latency_p50"]),
            spread(row["speedup"]),
            f"{row['memory_mb']:.0f}",
            f"{row['size_mb']:.2f}",
            f"{row['score']:.2f}",
            spread(row["drop_pt"]),
            "" if row["minutes"] is None else f"{row['minutes']:.1f}",
        ]
        for row in document["rows"]
        if row["speedup"] is not None
    ]
    limits = ", ".join(f"{key} {value}" for key, value in document["contract"].items() if key in ("max_drop", "latency", "size", "memory", "batch"))
    clauses = "; ".join(document["clauses"]).replace("<=", "at most")
    said = [
        f"**{document['name']}** ({limits}): {document['verdict']} in {document['seconds'] / 60:.1f} min. {clauses}.",
        f"Plan: {document['plan']}. {'; '.join(document['steps'])}.",
        f"A second contract for the same model: {document['second']['verdict']} in {document['second']['seconds']:.0f} s.",
    ]
    if document["ahead_of_best"]:
        said.append(f"Ahead of the fastest peer that keeps the limit on accuracy ({document['best_peer']}): {spread(document['ahead_of_best'])} x.")
    if document["gain_over_uniform_pt"]:
        said.append(f"More accurate than the same cut everywhere by {spread(document['gain_over_uniform_pt'])} pt.")
    headers = ["way", "latency p50, ms", "times torch fp32", "peak memory, MB", "size, MB", "test score, %", "drop on test, pt", "minutes"]
    return "\n\n".join([" ".join(said), document["noise"], markdown_table(rows, headers), made_on(document)])


def main() -> None:
    """Run, print, and write the table into the docs when asked."""
    parser = options(__doc__, "planner-CONTRACT")
    parser.add_argument("contract", choices=sorted(CASES))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--warm", action="store_true", help="use what earlier runs left in lissome's cache; minutes then say less than a first run takes")
    given = parser.parse_args()
    given.block = f"planner-{given.contract}"
    publish(given, lambda progress: run(given.contract, given.rounds, given.warm, progress), table)


if __name__ == "__main__":
    main()
