"""Contracts that no precision of the whole model can keep, and what the planner makes of them, beside the best whole-model ways in one interleaved run.

    python benchmarks/planner.py minilm minilm-batch mnist [--json] [--write docs/benchmarks.md] [--rounds 21]

minilm: the demo's sentiment classifier, batch 1, 6x faster at a drop of at most one point; minilm-batch: batch 32, 10x. minilm-drop: the limit on the drop
alone, which NNCF's accuracy control takes too. mnist: a CNN, 0.2 points, 4x faster and 8x smaller.
Each contract is given to `optimize`; then original, peers and the artifact run once more together, a process each, in rotating order. Peers: engines with one
precision throughout, the same share cut everywhere (taught as long, at equal latency), and NNCF's accuracy-aware quantisation.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "contracts": [{"name": str, "contract": {...},
"verdict": str, "clauses": [str], "plan": str, "steps": [str], "seconds": float, "noise": str, "rows": [{"name": str, "latency_p50": figure,
"speedup": figure, "memory_mb": float, "memory_less_pct": float, "size_mb": float, "smaller": float,
"drop_pt": figure}]}]} with figure = {"value", "low", "high", "unit", "n"}. speedup is against
torch fp32, drop_pt on the test split with one-sided bounds at 95 % each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from baselines import accuracy_controlled, uniformly_pruned
from encoder import plain
from lissome.core.cache import Cache
from lissome.core.contract import Contract
from lissome.core.errors import LissomeError
from lissome.core.manifest import Option
from lissome.core.model import Model
from lissome.core.progress import Progress, terminal
from lissome.core.statistics import certify_drop
from lissome.core.task import Task
from lissome.engines.measure import measure, speedup
from lissome.export.forms import form_bytes
from lissome.machine.identity import identify
from lissome.machine.versions import versions
from lissome.optimize.bench import Bench, make_bench, outputs
from lissome.optimize.demo import sentiment
from lissome.optimize.options import ORIGINAL
from lissome.optimize.run import Optimized, optimize
from lissome.optimize.tables import Row, built, subject
from lissome.report.markdown import markdown_table, update_marked_block
from vision_models import mnist

PEERS = [
    ("torch fp32 (eager)", ORIGINAL),
    ("ONNX Runtime fp32", Option(engine="onnxruntime", precision="fp32")),
    ("ONNX Runtime int8 dynamic", Option(engine="onnxruntime", precision="int8-dynamic")),
    ("OpenVINO bf16", Option(engine="openvino", precision="bf16")),
    ("OpenVINO NNCF int8", Option(engine="openvino", precision="int8-static")),
]
CONTRACTS: dict[str, tuple[Callable[[Cache, Progress], tuple[Model, Task]], Contract]] = {
    "minilm": (sentiment, Contract(max_drop="1%", latency="6x")),
    "minilm-batch": (sentiment, Contract(max_drop="1%", latency="10x", batch=32)),
    "minilm-drop": (sentiment, Contract(max_drop="1%")),
    "mnist": (mnist, Contract(max_drop="0.2%", latency="4x", size="8x")),
}


def run(names: list[str], rounds: int, progress: Progress) -> dict[str, Any]:
    """The whole benchmark as its JSON document."""
    cache, machine = Cache(), identify()
    document: dict[str, Any] = {"machine": machine.fingerprint, "cpu": machine.cpu, "versions": versions(), "contracts": []}
    for name in names:
        make, contract = CONTRACTS[name]
        model, task = make(cache, progress)
        with tempfile.TemporaryDirectory(prefix="lissome-") as folder:
            result = optimize(model, task, contract, out=Path(folder) / "artifact", cache=cache, progress=progress)
            bench = make_bench(model, task, contract, machine, cache, progress)
            document["contracts"].append(describe(name, result) | compare(bench, result, rounds, Path(folder)))
    return document


def describe(name: str, result: Optimized) -> dict[str, Any]:
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


def compare(bench: Bench, result: Optimized, rounds: int, scratch: Path) -> dict[str, Any]:
    """Original, peers and artifact in one interleaved run."""
    rows = [(name, row) for name, option in PEERS if (row := _peer(bench, option)) is not None]
    limit = bench.contract.limit("max_drop")
    if limit is not None:
        rows.append(accuracy_controlled(bench, limit.bound / 100, scratch / "controlled"))
    if result.folder is not None:
        form = result.folder / "engine"
        plan = Row(result.manifest.plan, form, form_bytes(form))
        uniform = uniformly_pruned(bench, result, plan)
        rows += [*([uniform] if uniform else []), ("lissome", plan)]
    before = scores(bench, rows[0][1])
    run = measure([subject(bench, row) for _, row in rows], bench.machine.fingerprint, rounds=rounds, threads=bench.threads, progress=bench.progress)
    first, found = run.results[0], []
    for (name, row), one in zip(rows, run.results, strict=True):
        if one.failed:
            continue
        drop = certify_drop(before, scores(bench, row), 0.01, bench.contract.level, bench.task.exact)
        figures = {figure.name: figure for figure in one.figures(bench.machine.fingerprint)}
        found.append(
            {
                "name": name,
                "latency_p50": plain(figures["latency_p50"]),
                "speedup": plain(speedup(first, one, "latency_p50", bench.machine.fingerprint)),
                "memory_mb": figures["memory"].value,
                "memory_less_pct": 100 * (1 - figures["memory"].value / float(run.results[0].memory_mb)),
                "size_mb": figures["size"].value,
                "smaller": rows[0][1].size / row.size,
                "drop_pt": {"value": 100 * drop.drop, "low": 100 * drop.low, "high": 100 * drop.upper, "unit": "pt", "n": drop.n},
            }
        )
    return {"noise": run.noise.sentence, "rows": found}


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


def table(document: dict[str, Any]) -> str:
    """A paragraph and a table a contract."""
    parts = []
    for one in document["contracts"]:
        rows = [
            [
                row["name"],
                "{value:.2f} [{low:.2f}, {high:.2f}]".format(**row["latency_p50"]),
                "{value:.2f} [{low:.2f}, {high:.2f}]".format(**row["speedup"]),
                f"{row['memory_mb']:.0f}",
                f"{row['size_mb']:.2f}",
                "{value:.2f} [{low:.2f}, {high:.2f}]".format(**row["drop_pt"]),
            ]
            for row in one["rows"]
        ]
        limits = ", ".join(f"{key} {value}" for key, value in one["contract"].items() if key in ("max_drop", "latency", "size", "memory", "batch"))
        clauses = "; ".join(one["clauses"]).replace("<=", "at most")
        text = f"**{one['name']}** ({limits}): {one['verdict']} in {one['seconds'] / 60:.1f} min. {clauses}. Plan: {one['plan']}. {'; '.join(one['steps'])}."
        headers = ["way", "latency p50, ms", "times torch fp32", "peak memory, MB", "size, MB", "drop on test, pt"]
        parts.append(f"{text}\n\n{one['noise']}\n\n{markdown_table(rows, headers)}")
    used = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return "\n\n".join([*parts, f"{document['cpu']}, {document['machine']}, {document['created'][:10]}. {used}."])


def main() -> None:
    """Run, print, and write the table into the docs when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contracts", nargs="+", choices=sorted(CONTRACTS))
    parser.add_argument("--json", action="store_true", help="print the JSON document instead of the table")
    parser.add_argument("--write", type=Path, help="a Markdown file with <!-- planner --> markers to write the table into")
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args()
    with terminal() as progress:
        document = run(given.contracts, given.rounds, progress)
    document["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    print(json.dumps(document, indent=1) if given.json else table(document))
    if given.write:
        update_marked_block(given.write, "planner", table(document))


if __name__ == "__main__":
    main()
