"""`task check`: what lissome understood of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli.emit import JsonFlag, emit_json, show


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    group = typer.Typer(help="Tasks: data, splits and scores.", no_args_is_help=True)
    group.command()(check)
    app.add_typer(group, name="task")


def check(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Task file (YAML), or package.module:function.")],
    model: Annotated[Path | None, typer.Option("--model", help="Model folder or GGUF file whose tokenizer cuts the texts.")] = None,
    json: JsonFlag = False,
) -> None:
    """Say what TASK was understood to be: sizes, classes, balance, lengths, leaks between splits."""
    from lissome.data import check_task, load_task
    from lissome.report.terminal import task_report_table

    if model is not None and model.suffix.lower() == ".gguf":
        from lissome.nn.gguf import converted

        model = converted(model)
    found = check_task(load_task(task, model))
    emit_json(found) if json else show(task_report_table(found))
