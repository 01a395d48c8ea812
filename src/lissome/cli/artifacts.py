"""`run`, `verify` and `explain-plan`: what is done with an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli.emit import JsonFlag, emit_json, show
from lissome.core.progress import terminal

ArtifactArgument = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder that `lissome optimize` wrote.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(run)
    app.command()(verify)
    app.command("explain-plan")(explain_plan)


def run(
    artifact: ArtifactArgument,
    input: Annotated[
        list[str] | None, typer.Option("--input", help="One input: a text, a picture's path, a row (JSON object or CSV cells). May be given several times.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A file with one input a line; - for standard input.")] = None,
    json: JsonFlag = False,
) -> None:
    """Predict with an artifact."""
    from lissome.engines.artifact import open_artifact
    from lissome.engines.reading import raw_inputs

    inputs = raw_inputs(input or [], file)
    predictions = open_artifact(artifact).predict(inputs)
    if json:
        emit_json([{"input": text, **prediction} for text, prediction in zip(inputs, predictions, strict=True)])
    else:
        from lissome.report.terminal import prediction_lines

        show(prediction_lines(inputs, predictions))


def verify(
    artifact: ArtifactArgument,
    task: Annotated[str | None, typer.Option("--task", help="Where the task is now, if it has moved.")] = None,
    json: JsonFlag = False,
) -> int:
    """Measure an artifact again on this machine: does its contract still hold?"""
    from lissome.optimize.recheck import verify as recheck
    from lissome.report.terminal import recheck_text

    with terminal() as progress:
        found = recheck(artifact, task, progress=progress)
    emit_json({"verdict": found.verdict, "same_machine": found.same_machine, "noise": found.noise}) if json else show(recheck_text(found))
    return 0 if found.verdict.status == "met" else 3


def explain_plan(artifact: ArtifactArgument, json: JsonFlag = False) -> None:
    """Say what was chosen for every part of the model, what it saved, what it cost, and what the alternatives were."""
    from lissome.core.manifest import read_manifest
    from lissome.report.plan import plan_table, plan_text

    manifest = read_manifest(artifact)
    if json:
        emit_json({"plan": manifest.plan, "steps": manifest.steps, "parts": manifest.parts})
    elif manifest.parts:
        show(plan_text(manifest), plan_table(manifest))
    else:
        show(plan_text(manifest))
