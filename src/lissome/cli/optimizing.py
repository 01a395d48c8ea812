"""`optimize` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli.emit import JsonFlag, ModelArgument, TaskOption, configured, emit_json, show
from lissome.core.contract import Contract
from lissome.core.progress import terminal

Limit = Annotated[str | None, typer.Option()]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(optimize)
    app.command()(demo)


def optimize(
    model: ModelArgument,
    task: TaskOption,
    max_drop: Annotated[str | None, typer.Option(help='Allowed accuracy drop: "1%" or "1pt" (points), "1%rel" (of the original score).')] = None,
    latency: Annotated[str | None, typer.Option(help='"10ms", "p95 10ms", or "3x" (times faster than the original).')] = None,
    memory: Annotated[str | None, typer.Option(help='Peak memory of the process that runs it: "60MB" or "2x".')] = None,
    size: Annotated[str | None, typer.Option(help='Size on disk: "20MB" or "4x".')] = None,
    energy: Annotated[str | None, typer.Option(help='Energy of one call: "3mJ" or "2x"; needs a counter, estimates do not count.')] = None,
    confidence: Annotated[str, typer.Option(help="Level at which every limit must hold.")] = "95%",
    batch: Annotated[int, typer.Option(help="Examples per call that latency is measured at.")] = 1,
    spend: Annotated[str | None, typer.Option(help='Time the optimiser may take: "20min".')] = None,
    ram: Annotated[str | None, typer.Option(help='Memory the optimiser may take: "4GB".')] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the artifact; by default runs/KEY.")] = None,
    json: JsonFlag = False,
) -> int:
    """Find the best way to run MODEL here that keeps the limits, and prove it on unused data."""
    from lissome.optimize.run import optimize as run
    from lissome.report.result import finish

    given = {"max_drop": max_drop, "latency": latency, "memory": memory, "size": size, "energy": energy, "spend": spend, "ram": ram}
    contract = configured(Contract, "contract", **given, confidence=confidence, batch=batch)
    with terminal() as progress:
        result = finish(run(model, task, contract, out=out, progress=progress, seed=seed))
    emit_json(result.document) if json else show(*result.text)
    return result.exit_code


def demo(
    digits: Annotated[bool, typer.Option("--digits", help="The small embedded demo: scikit-learn's digits and a small CNN.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the artifact; by default runs/KEY.")] = None,
    json: JsonFlag = False,
) -> int:
    """The main job on a real model: fine-tune MiniLM on sentiment, then make it twice as fast at a drop of at most one point."""
    from lissome.optimize.demo import demo as run
    from lissome.report.result import finish

    with terminal() as progress:
        result = finish(run(digits=digits, out=out, progress=progress))
    emit_json(result.document) if json else show(*result.text)
    return result.exit_code
