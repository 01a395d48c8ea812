"""`probe` and `measure`: what this machine is and what a model costs on it."""

from __future__ import annotations

from typing import Annotated

import typer

from lissome.cli.emit import JsonFlag, ModelArgument, TaskOption, emit_json, show
from lissome.core.progress import terminal


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(probe)
    app.command()(measure)


def probe(fresh: Annotated[bool, typer.Option("--fresh", help="Measure again, whatever is cached.")] = False, json: JsonFlag = False) -> None:
    """What this machine is, what it can do, and which levers will help here."""
    from lissome.core.cache import Cache
    from lissome.machine.probe import probe as run
    from lissome.report.terminal import probe_table

    with terminal() as progress:
        found = run(Cache(), progress, fresh=fresh)
    emit_json(found) if json else show(probe_table(found))


def measure(
    model: ModelArgument,
    task: TaskOption,
    versus: Annotated[str | None, typer.Option("--vs", metavar="MODEL", help="A second model, measured side by side; ratios are printed.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,32",
    engine: Annotated[str, typer.Option(help="torch, torch.compile, onnxruntime or openvino.")] = "torch",
    precision: Annotated[str, typer.Option(help="fp32, bf16, int8-dynamic or int8-static.")] = "fp32",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; intervals are over them.")] = 15,
    json: JsonFlag = False,
) -> None:
    """Latency, throughput, cold start, memory, size and FLOPs of MODEL on the task's inputs, each with its interval."""
    from lissome.optimize.measuring import measure_model
    from lissome.report.terminal import measured_tables

    with terminal() as progress:
        found = measure_model([model, *([versus] if versus else [])], task, batch, engine, precision, rounds, progress=progress)
    emit_json(found) if json else show(*measured_tables(found))
