"""`sparsify`: sparse attention that keeps a wanted share of the quality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissome.cli.emit import JsonFlag, ModelArgument, TaskOption, configured, emit_json, show
from lissome.cli.models import seconds
from lissome.cli.share import share
from lissome.core.progress import terminal

if TYPE_CHECKING:
    from lissome.compress.attention import Sparsified


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command()(sparsify)


def sparsify(
    model: ModelArgument,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    keep: Annotated[str, typer.Option(help='Share of the quality that must be kept: "98%".')] = "98%",
    confidence: Annotated[str, typer.Option(help="Level at which it must hold.")] = "95%",
    train: Annotated[bool, typer.Option("--train", help="Train the model for the next bolder plan, taught by its dense self.")] = False,
    candidate: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="A pattern that heads may take, not the built-in ones. Repeatable.")] = None,
    examples: Annotated[int, typer.Option(help="Calibration examples that the heads are watched on.")] = 32,
    fit_steps: Annotated[int, typer.Option(help="Batches of the train split that scorers named by candidates are fitted on.")] = 100,
    epochs: Annotated[float, typer.Option(help="With --train: passes over the train split.")] = 1,
    lr: Annotated[float, typer.Option(help="With --train: peak learning rate.")] = 5e-5,
    size: Annotated[int | None, typer.Option("--batch", help="Examples per batch; by default 16, and 1 for language models.")] = None,
    spend: Annotated[str | None, typer.Option(help='With --train: time the training may take: "20min".')] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    json: JsonFlag = False,
) -> int:
    """Give every attention head of MODEL the cheapest pattern that keeps the quality on a task, certified, and write a folder."""
    from lissome.compress.attention.config import SparsifyConfig
    from lissome.train.config import TrainConfig

    training = configured(TrainConfig, "training", epochs=epochs, lr=lr, seed=seed, spend=seconds(spend))
    options = {"keep": share(keep, "--keep"), "confidence": share(confidence, "--confidence"), "examples": examples, "adapt": train, "train": training}
    config = configured(SparsifyConfig, "sparsity", **options, fit_steps=fit_steps, size=size, candidates=tuple(candidate) if candidate else None)
    from lissome.compress.attention import sparsify_to

    with terminal() as progress:
        found = sparsify_to(out, model, task, config, progress=progress)
    emit_json(found) if json else show(*_told(found))
    return 3 if found.status == "not met" else 0


def _told(found: Sparsified) -> list[Any]:
    """The plan layer by layer, the walk, and what came of it."""
    from rich.table import Table

    plan = Table("layer", "dense", "windows", "chosen", "mass kept", "pairs", box=None, pad_edge=False)
    for one in found.layers:
        plan.add_row(str(one.layer), *(str(one.heads[kind]) for kind in ("dense", "windows", "chosen")), f"{one.kept:.4f}", f"{100 * one.share:.0f} %")
    walk = Table("mass asked for", "mass kept", "pairs", "quality kept (validation)", "", box=None, pad_edge=False)
    for step in found.steps:
        said = ("certified" if step.certified else "not certified") + (", trained" if step.trained else "")
        walk.add_row(f"{step.tau:g}", f"{step.mass:.4f}", f"{100 * step.share:.0f} %", f"{100 * step.kept:.2f} %", said)
    lines = [found.sentence]
    if found.scores:
        lines.append(f"test score  {found.scores[0]:.4f} dense, {found.scores[1]:.4f} sparse")
    if found.speed:
        lines.append(f"speed       {found.speed}, dense over sparse, at {' and '.join(f'{one:,}' for one in dict.fromkeys(found.lengths))} tokens")
    return [plan, walk, "\n".join([*lines, f"Model       {found.folder}"])]
