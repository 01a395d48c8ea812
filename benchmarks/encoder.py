"""MiniLM classifier, 32 tokens, batch 1 and 32: torch, torch.compile, ONNX Runtime, OpenVINO, NNCF, and lissome's choice, in one interleaved run.

    python benchmarks/encoder.py [--json] [--write docs/benchmarks.md] [--rounds 21]

Every way is a process of its own with all usable cores; a round times each once, in rotating order; figures are medians over rounds with
95 % intervals, ratios are taken round by round against torch fp32. lissome's choice is what `optimize` picks under "at most one point of accuracy,
as fast as possible" at that batch size; when that is one of the other rows, it is the same files run once more, as a check on the run.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "noise": {batch: sentence},
"rows": [{"name": str, "batch": int, "plan": str, "latency_p50": figure, "throughput": figure, "memory_mb": float, "size_mb": float,
"speedup": figure, "drop_pt": figure | null}]} with figure = {"value", "low", "high", "unit", "n"}; speedup is against torch fp32; drop_pt is the accuracy
drop on the validation split with its one-sided bounds, as the tables of `optimize` hold it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lissome.core.cache import Cache
from lissome.core.contract import Contract
from lissome.core.manifest import Option
from lissome.core.progress import Progress
from lissome.engines.measure import Subject, measure, speedup
from lissome.export.forms import build_form, form_bytes
from lissome.optimize.bench import Bench, make_bench
from lissome.optimize.demo import sentiment
from lissome.optimize.describe import drop_on_validation
from lissome.optimize.solve import solve
from lissome.optimize.survey import survey
from lissome.optimize.tables import Row
from lissome.report.markdown import markdown_table
from publishing import made_on, on, options, plain, publish, spread

TOKENS = 32
CALLS = {1: 16, 32: 3}
ROWS = [
    ("torch fp32 (eager)", "torch", "fp32"),
    ("torch bf16", "torch", "bf16"),
    ("torch.compile fp32", "torch.compile", "fp32"),
    ("ONNX Runtime fp32", "onnxruntime", "fp32"),
    ("ONNX Runtime int8 dynamic", "onnxruntime", "int8-dynamic"),
    ("OpenVINO fp32", "openvino", "fp32"),
    ("OpenVINO bf16", "openvino", "bf16"),
    ("OpenVINO NNCF int8", "openvino", "int8-static"),
]


def batches(bench: Bench, size: int) -> list[dict[str, np.ndarray]]:
    """Random texts of the validation split, repeated or cut to exactly 32 tokens, in batches of `size`."""
    inputs = bench.task.splits["validation"].inputs
    picks = np.random.default_rng(0).choice(len(inputs), size=size * CALLS[size])
    found = []
    for i in range(0, len(picks), size):
        batch = bench.task.collate([" ".join([str(inputs[int(j)])] * 12) for j in picks[i : i + size]], "fixed")
        found.append({name: np.ascontiguousarray(array[:, :TOKENS]) for name, array in batch.items()})
    return found


def subject(bench: Bench, name: str, option: Option, form: Path, size: int) -> Subject:
    """One way as a subject; a plan of fixed length is given this benchmark's 32 tokens."""
    inputs = batches(bench, size)
    shapes = {key: tuple(array.shape) for key, array in inputs[0].items()} if option.padding == "fixed" else None
    return Subject(name, option.engine, option.precision, form, inputs, form_bytes(form), shapes)


def lissomes_choice(bench: Bench) -> tuple[Row, list[Row]]:
    """What `optimize` picks at this batch size, and the tables it picked from."""
    rows, _ = survey(bench)
    solution = solve(rows, bench.contract, bench.machine.fingerprint, len(bench.task.splits["test"]))
    return solution.ranked[0], rows


def run(rounds: int, progress: Progress) -> dict[str, Any]:
    """The whole benchmark as its JSON document."""
    cache = Cache()
    model, task = sentiment(cache, progress)
    from lissome.machine.identity import identify

    machine = identify()
    document: dict[str, Any] = on(machine) | {"noise": {}, "rows": []}
    for size in CALLS:
        bench = make_bench(model, task, Contract(max_drop="1%", batch=size), machine, cache, progress)
        chosen, rows = lissomes_choice(bench)
        known = {row.option: row for row in rows}
        ways = [(name, Option(engine=engine, precision=precision)) for name, engine, precision in ROWS]
        ways = [(name, option) for name, option in ways if option in known and known[option].trouble is None] + [("lissome", chosen.option)]
        subjects = [subject(bench, name, option, build_form(bench.recipe, option.engine, option.precision, cache), size) for name, option in ways]
        measured = measure(subjects, machine.fingerprint, rounds=rounds, threads=bench.threads, progress=progress)
        document["noise"][str(size)] = measured.noise.sentence
        for (name, option), result in zip(ways, measured.results, strict=True):
            figures = {figure.name: figure for figure in result.figures(machine.fingerprint)}
            document["rows"].append(
                {
                    "name": name,
                    "batch": size,
                    "plan": option.name,
                    "latency_p50": plain(figures["latency_p50"]),
                    "throughput": plain(figures["throughput"]),
                    "memory_mb": figures["memory"].value,
                    "size_mb": figures["size"].value,
                    "speedup": plain(speedup(measured.results[0], result, "latency_p50", machine.fingerprint)),
                    "drop_pt": plain(drop_on_validation(bench, rows[0], known[option])),
                }
            )
    return document


def table(document: dict[str, Any]) -> str:
    """The rows as one Markdown table a batch size, with the machine and its noise below."""
    parts = []
    for size, noise in document["noise"].items():
        rows = [row for row in document["rows"] if str(row["batch"]) == size]
        shown = [
            [
                f"{row['name']} ({row['plan']})" if row["name"] == "lissome" else row["name"],
                spread(row["latency_p50"]),
                spread(row["speedup"]),
                f"{row['memory_mb']:.0f}",
                f"{row['size_mb']:.1f}",
                "" if row["drop_pt"] is None else "{value:.2f} (<= {high:.2f})".format(**row["drop_pt"]),
            ]
            for row in rows
        ]
        headers = ["way", "latency p50, ms", "times torch fp32", "peak memory, MB", "size, MB", "drop, pt (bound)"]
        parts.append(f"Batch {size}, {TOKENS} tokens. {noise}\n\n{markdown_table(shown, headers)}")
    return "\n\n".join([*parts, made_on(document)])


def main() -> None:
    """Run, print, and write the table into the docs when asked."""
    parser = options(__doc__, "encoder")
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args()
    publish(given, lambda progress: run(given.rounds, progress), table)


if __name__ == "__main__":
    main()
