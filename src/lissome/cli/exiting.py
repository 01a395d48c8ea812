"""`exits`: inputs that are sure early leave a classifier early."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissome.cli.emit import JsonFlag, ModelArgument, TaskOption, configured, emit_json, show
from lissome.cli.models import seconds
from lissome.cli.share import share
from lissome.core.errors import BadInput
from lissome.core.progress import terminal

if TYPE_CHECKING:
    from lissome.compress.exits import Exited


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command()(exits)


def exits(
    model: ModelArgument,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    max_drop: Annotated[str, typer.Option(help='Largest loss of the mean score, in points: "0.8%".')] = "0.8%",
    confidence: Annotated[str, typer.Option(help="Level at which it must hold.")] = "95%",
    risk: Annotated[str, typer.Option(help='"drop": of the mean score; "lost": right answers that become wrong.')] = "drop",
    rule: Annotated[str, typer.Option(help="What must be sure: max-probability, margin, entropy, or complexity (of the input).")] = "max-probability",
    after: Annotated[str | None, typer.Option(metavar="2,3,4", help="Numbers of blocks after which inputs may leave.")] = None,
    blocks: Annotated[str | None, typer.Option(help="Name of the list of blocks, if it is not found.")] = None,
    frozen: Annotated[bool, typer.Option("--frozen/--train-trunk", help="Train the exits alone, or the whole model with them.")] = True,
    epochs: Annotated[float, typer.Option(help="Passes over the train split.")] = 1,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; by default 1e-3, and 1e-4 with --train-trunk.")] = None,
    size: Annotated[int, typer.Option("--batch", help="Examples per batch.")] = 32,
    spend: Annotated[str | None, typer.Option(help='Time the training may take: "20min".')] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    json: JsonFlag = False,
) -> int:
    """Let inputs that are sure early leave MODEL early, as far as the loss on a task is certified, and write a folder."""
    from lissome.compress.exits.config import ExitsConfig
    from lissome.train.config import TrainConfig

    rate = lr if lr is not None else 1e-3 if frozen else 1e-4
    training = configured(TrainConfig, "training", epochs=epochs, lr=rate, seed=seed, spend=seconds(spend), precision="fp32" if frozen else "auto")
    limits = {"max_drop": share(max_drop, "--max-drop"), "confidence": share(confidence, "--confidence"), "risk": risk, "rule": rule}
    config = configured(ExitsConfig, "exits", **limits, after=_places(after), blocks=blocks, frozen=frozen, size=size, train=training)
    from lissome.compress.exits import exits_to

    with terminal() as progress:
        found = exits_to(out, model, task, config, progress=progress)
    emit_json(found) if json else show(*_told(found))
    return 0 if found.status == "met" else 3


def _places(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError as error:
        raise BadInput(f'--after: "{text}" is no list of numbers', expected='numbers of blocks, such as "2,3,4"') from error


def _told(found: Exited) -> list[Any]:
    """Who leaves where, the time, and the verdict."""
    from rich.table import Table

    table = Table("leaves after", "from confidence", "share of inputs", "score", box=None, pad_edge=False)
    for one in found.exits:
        last = one is found.exits[-1]
        threshold = "" if last else "closed" if one.threshold is None else f"{one.threshold:.4f}"
        table.add_row(f"block {one.after}", threshold, f"{100 * one.share:.1f} %", "" if one.score is None else f"{one.score:.4f}")
    lines = [found.sentence, *([found.nearest] if found.nearest else [])]
    lines += [f"time saved  {one} at {name}" for name, one in found.saved.items()]
    if found.scores:
        lines.append(f"test score  {found.scores[0]:.4f} -> {found.scores[1]:.4f}, {100 * found.blocks:.0f} % of the blocks run")
    return [table, "\n".join([*lines, f"Model       {found.folder}"])]
