"""`sparsify-activations`: feed-forward parts whose neurons mostly say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissome.cli.emit import JsonFlag, ModelArgument, TaskOption, configured, emit_json, show
from lissome.cli.models import seconds
from lissome.cli.share import share
from lissome.core.progress import terminal

if TYPE_CHECKING:
    from lissome.compress.activation import Silenced


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command("sparsify-activations")(sparsify_activations)


def sparsify_activations(
    model: ModelArgument,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    keep: Annotated[str, typer.Option(help='Share of the quality that must be kept: "99%".')] = "99%",
    confidence: Annotated[str, typer.Option(help="Level at which it must hold.")] = "95%",
    risk: Annotated[str, typer.Option(help='"lost": right answers that become wrong; "drop": of the mean score.')] = "lost",
    activation: Annotated[str, typer.Option(help='"same", "relu" or "relu2".')] = "same",
    on: Annotated[str, typer.Option(help='What thresholds are held against: "gate", or its "product" with up.')] = "gate",
    train: Annotated[bool, typer.Option("--train", help="Train the model for more zeros, taught by its dense self.")] = False,
    sparsity: Annotated[str, typer.Option(help="With --train: share of zeros to train for.")] = "85%",
    penalty: Annotated[float, typer.Option(help="With --train: weight of the activations' mean size.")] = 0.0,
    examples: Annotated[int, typer.Option(help="Examples that thresholds are chosen on (calibration) and zeros measured on (validation).")] = 64,
    epochs: Annotated[float, typer.Option(help="With --train: passes over the train split.")] = 1,
    lr: Annotated[float, typer.Option(help="With --train: peak learning rate.")] = 5e-5,
    size: Annotated[int | None, typer.Option("--batch", help="Examples per batch; by default 16, and 1 for language models.")] = None,
    spend: Annotated[str | None, typer.Option(help='With --train: time the training may take: "20min".')] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    json: JsonFlag = False,
) -> int:
    """Silence the neurons of MODEL's feed-forward parts that say least, as far as the quality on a task is kept, certified, and write a folder."""
    from lissome.compress.activation.config import ActivationConfig
    from lissome.train.config import TrainConfig

    training = configured(TrainConfig, "training", epochs=epochs, lr=lr, seed=seed, spend=seconds(spend))
    options: dict[str, Any] = {
        "keep": share(keep, "--keep"),
        "confidence": share(confidence, "--confidence"),
        "share": share(sparsity, "--sparsity"),
        "risk": risk,
    }
    options |= {"activation": activation, "on": on, "examples": examples, "adapt": train, "penalty": penalty, "train": training, "size": size}
    config = configured(ActivationConfig, "sparsity", **options)
    from lissome.compress.activation import sparsify_activations_to

    with terminal() as progress:
        found = sparsify_activations_to(out, model, task, config, progress=progress)
    emit_json(found) if json else show(*_told(found))
    return 0 if found.status == "met" else 3


def _told(found: Silenced) -> list[Any]:
    """The zeros layer by layer, the walk, and what came of it."""
    from rich.table import Table

    plan = Table("layer", "threshold", "zeros", "", box=None, pad_edge=False)
    for one in found.layers:
        plan.add_row(str(one.layer), f"{one.threshold:.4g}", str(one.zeros), "says nothing at all" if one.silent else "")
    walk = Table("zeros asked for", "kept (validation)", "", box=None, pad_edge=False)
    for step in found.steps:
        said = ("certified" if step.certified else "not certified") + (", trained" if step.trained else "")
        walk.add_row(f"{100 * step.share:.0f} %", f"{100 * step.kept:.2f} %", said)
    lines = [found.sentence]
    if found.layers:
        lines.append(f"zeros       {found.zeros:.1f} %, multiplications of the feed-forward parts {100 * found.multiplications:.1f} % of the dense (counted)")
    if found.scores:
        lines.append(f"test score  {found.scores[0]:.4f} dense, {found.scores[1]:.4f} sparse")
    return [plan, walk, "\n".join([*lines, f"Model       {found.folder}"])]
