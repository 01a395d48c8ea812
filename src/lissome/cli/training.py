"""`distill` and `sparse-train`: passes that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli.emit import JsonFlag, ModelArgument, TaskOption, configured, emit_json, show
from lissome.cli.models import seconds
from lissome.core.progress import terminal


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(distill)
    app.command("sparse-train")(sparse_train)


def distill(
    model: ModelArgument,
    teacher: Annotated[str, typer.Option(metavar="MODEL", help="The model that MODEL learns from.")],
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="Folder for the student.")],
    epochs: Annotated[int, typer.Option(help="Passes over the train split.")] = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-4,
    size: Annotated[int, typer.Option("--batch", help="Examples per step.")] = 32,
    logits: Annotated[float, typer.Option(help="Weight of the teacher's softened outputs.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="How soft the outputs are made.")] = 2.0,
    hidden: Annotated[float, typer.Option(help="Weight of the hidden states.")] = 0.0,
    attention: Annotated[float, typer.Option(help="Weight of the attention relations.")] = 0.0,
    labels: Annotated[float, typer.Option(help="Weight of the hard labels.")] = 0.0,
    variations: Annotated[float, typer.Option(help="Share of each batch's texts that are altered, each time anew: more to learn from.")] = 0.0,
    freeze_embeddings: Annotated[bool, typer.Option(help="Leave the embeddings as they are.")] = False,
    patience: Annotated[int | None, typer.Option(help="Epochs without progress on validation after which it stops.")] = None,
    spend: Annotated[str | None, typer.Option(help='Time the training may take: "20min".')] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Teach MODEL, of the same size or smaller, to answer as --teacher does, and write a folder that `lissome optimize` takes."""
    from lissome.compress.distill import DistillConfig, DistillTaskConfig, distill_to
    from lissome.train.config import TrainConfig

    terms = configured(DistillConfig, "distillation", logits=logits, temperature=temperature, hidden=hidden, attention=attention, labels=labels)
    config = configured(TrainConfig, "training", epochs=epochs, lr=lr, seed=seed, spend=seconds(spend))
    more = {"variations": variations, "freeze_embeddings": freeze_embeddings, "patience": patience}
    settings = configured(DistillTaskConfig, "distillation", terms=terms, train=config, size=size, **more)
    with terminal() as progress:
        found = distill_to(out, model, teacher, task, settings, progress=progress)
    if json:
        emit_json(found)
        return
    small, large = found.parameters
    show(
        f"validation score {found.score:.4f} (before {found.before:.4f}, teacher {found.teacher:.4f})\n"
        f"parameters       {small:,} of the teacher's {large:,}\n"
        f"Model            {found.folder}"
    )


def sparse_train(
    model: ModelArgument,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="Folder for the sparse model.")],
    sparsity: Annotated[float, typer.Option(help="Share of zeros at the end; an N:M pattern sets its own.")] = 0.8,
    pattern: Annotated[str, typer.Option(help='"unstructured", N:M such as "2:4", or blocks of outputs x inputs such as "16x1".')] = "unstructured",
    saliency: Annotated[str, typer.Option(help='What decides: "magnitude" or "gradient" (movement).')] = "magnitude",
    schedule: Annotated[str, typer.Option(help='How the share rises: "cubic", "step" or "constant".')] = "cubic",
    stages: Annotated[int, typer.Option(help='Stages of the "step" schedule.')] = 4,
    epochs: Annotated[int, typer.Option(help="Passes over the train split.")] = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    size: Annotated[int, typer.Option("--batch", help="Examples per step.")] = 32,
    spend: Annotated[str | None, typer.Option(help='Time the training may take: "20min".')] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Train MODEL while more and more of its weights become zero, and say which engine can use the zeros here."""
    from lissome.compress.sparse import SparseConfig, SparseTaskConfig, sparsify_to
    from lissome.compress.sparse.engines import COMPRESSED
    from lissome.report.markdown import markdown_table
    from lissome.train.config import TrainConfig

    zeros = configured(SparseConfig, "sparsity", sparsity=sparsity, pattern=pattern, saliency=saliency, schedule=schedule, stages=stages)
    config = configured(TrainConfig, "training", epochs=epochs, lr=lr, seed=seed, spend=seconds(spend))
    settings = configured(SparseTaskConfig, "sparse training", sparse=zeros, train=config, size=size)
    with terminal() as progress:
        found = sparsify_to(out, model, task, settings, progress=progress)
    if json:
        emit_json(found)
        return
    rows = [[layer.name, f"{layer.weights:,}", f"{100 * layer.share:.1f} %", layer.left] for layer in found.layers]
    words = "\n".join(f"{'faster' if word.faster else 'no faster':9}  {word.engine}: {word.why}" for word in found.engines)
    show(
        markdown_table(rows, ["layer", "weights", "zeros", "left dense because"]),
        f"{words}\n{COMPRESSED}",
        f"validation score {found.score:.4f} (before {found.before:.4f}), {100 * found.share:.1f} % zeros\nModel            {found.folder}",
    )
