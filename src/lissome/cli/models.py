"""`fine-tune`: train a model on a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli.emit import JsonFlag, ModelArgument, TaskOption, configured, emit_json, show
from lissome.core.errors import BadInput
from lissome.core.progress import terminal


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command("fine-tune")(fine_tune)


def fine_tune(
    model: ModelArgument,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    epochs: Annotated[int, typer.Option(help="Passes over the train split.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    size: Annotated[int, typer.Option("--batch", help="Examples per step.")] = 32,
    freeze_embeddings: Annotated[bool, typer.Option(help="Leave the embeddings as they are.")] = False,
    adaptive_precision: Annotated[bool, typer.Option(help="Move each layer among int8 (simulated), bf16 and fp32 as its gradient changes.")] = False,
    spend: Annotated[str | None, typer.Option(help='Time the training may take: "20min".')] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Fine-tune MODEL on a task's train split and write a folder that `lissome optimize` takes."""
    from lissome.train.config import AdaptiveConfig, FinetuneConfig, TrainConfig
    from lissome.train.finetune import finetune_to

    config = configured(TrainConfig, "training", epochs=epochs, lr=lr, seed=seed, spend=seconds(spend))
    adaptive = AdaptiveConfig() if adaptive_precision else None
    settings = configured(FinetuneConfig, "fine-tuning", train=config, size=size, freeze_embeddings=freeze_embeddings, adaptive=adaptive)
    with terminal() as progress:
        trained = finetune_to(out, model, task, settings, progress=progress)
    emit_json(trained) if json else show(f"validation score {trained.score:.4f}\nModel     {trained.folder}")


def seconds(spend: str | None) -> float | None:
    """`--spend` in seconds."""
    from lissome.core.contract import parse_duration

    try:
        return None if spend is None else parse_duration(spend)
    except ValueError as error:
        raise BadInput(f"--spend: {error}") from error
