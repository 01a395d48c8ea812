"""`quantize` and `qat`: fewer bits, after training and by training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lissome.cli.emit import JsonFlag, ModelArgument, TaskOption, configured, emit_json, show
from lissome.cli.models import seconds
from lissome.core.errors import BadInput
from lissome.core.progress import terminal

if TYPE_CHECKING:
    from lissome.compress.quantize.task import QuantizedFolder

Out = Annotated[Path, typer.Option("--output", "--out", help="Folder for the quantised model.")]
PRECISIONS = "int8-static, int8-dynamic, w8a16 or w4a16"
METHODS = "How ranges are found: minmax, percentile, mse or entropy"


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(quantize)
    app.command()(qat)


def quantize(
    model: ModelArgument,
    out: Out,
    task: Annotated[str | None, typer.Option("--task", metavar="TASK", help="Task whose calibration split gives the ranges; int8-static needs one.")] = None,
    precision: Annotated[str, typer.Option(help=f"{PRECISIONS}; int8 is the first with a task and the second without.")] = "int8",
    method: Annotated[str, typer.Option(help=f"{METHODS}.")] = "mse",
    percentile: Annotated[float, typer.Option(help="For --method percentile: share of values kept on each side.")] = 99.99,
    adaptive_layers: Annotated[bool, typer.Option("--adaptive-layers", "--adaptive_layers", help="Leave the most sensitive layers in bf16.")] = False,
    sensitivity: Annotated[
        str, typer.Option(help="How --adaptive-layers ranks layers: divergence (measured) or gradient (estimated, one pass).")
    ] = "divergence",
    spare: Annotated[float | None, typer.Option(help="How many --adaptive-layers leaves: a share below 1, or a number. By default 0.1.")] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PRECISION", help="A layer's own precision, also fp32 or bf16; * and ? make patterns. Repeatable."),
    ] = None,
    least_examples: Annotated[int, typer.Option(help="Fewer calibration examples than this are refused.")] = 8,
    smooth: Annotated[float | None, typer.Option(help="SmoothQuant's alpha, 0 to 1; left out, nothing is equalised.")] = None,
    group: Annotated[int, typer.Option(help="Input channels that share a weight scale, for w8a16 and w4a16.")] = 32,
    symmetric: Annotated[bool, typer.Option("--symmetric/--asymmetric", help="Weights without a zero point, for w8a16 and w4a16.")] = True,
    rounding: Annotated[str, typer.Option(help="Of w8a16 and w4a16 weights: rtn, absolute, mse, awq, gptq or awq+gptq; the last three need a task.")] = "mse",
    bias_correction: Annotated[
        bool, typer.Option("--bias-correction/--no-bias-correction", "--bias_correction/--no_bias_correction", help="Shift biases by the mean error.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Quantise MODEL after training: int8 products, or 8- and 4-bit weights."""
    from lissome.compress.quantize.config import QuantizeConfig, exceptions

    if spare is not None and not adaptive_layers:
        raise BadInput("--spare says how many layers --adaptive-layers leaves, which was not given.", do="give both, or neither")
    kept = (0.1 if spare is None else spare) if adaptive_layers else 0
    options = {
        "precision": precision,
        "method": method,
        "percentile": percentile,
        "smooth": smooth,
        "group": group,
        "symmetric": symmetric,
        "rounding": rounding,
        "adaptive_layers": kept,
        "sensitivity": sensitivity,
    }
    data = {"bias_correction": bias_correction, "least_examples": least_examples}
    config = configured(QuantizeConfig, "quantisation", **options, **data)
    config = config.model_copy(update={"layers": exceptions(layer or [], config.group)})
    from lissome.compress.quantize.task import quantize_to

    with terminal() as progress:
        found = quantize_to(out, model, task, config, progress=progress)
    emit_json(found) if json else show(_text(found))


def qat(
    model: ModelArgument,
    task: TaskOption,
    out: Out,
    epochs: Annotated[float, typer.Option(help="Passes over the train split.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the weights.")] = 2e-5,
    size: Annotated[int, typer.Option("--batch", help="Examples per step.")] = 32,
    teacher: Annotated[float, typer.Option(help="Share of the loss that follows the float model's outputs.")] = 0.5,
    precision: Annotated[str | None, typer.Option(help=f"Of a MODEL that is not quantised yet: {PRECISIONS}.")] = None,
    method: Annotated[str | None, typer.Option(help=f"Of a MODEL that is not quantised yet. {METHODS}.")] = None,
    spend: Annotated[str | None, typer.Option(help='Time the training may take: "20min".')] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Train a quantised MODEL (a folder of `lissome quantize`), or quantise MODEL and train that."""
    from lissome.compress.quantize.config import QatTaskConfig, QuantizeConfig
    from lissome.train.config import TrainConfig

    training = configured(TrainConfig, "training", epochs=epochs, lr=lr, seed=seed, spend=seconds(spend))
    config = configured(QatTaskConfig, "training", train=training, size=size, teacher=teacher)
    start = configured(QuantizeConfig, "quantisation", precision=precision, method=method) if precision or method else None
    from lissome.compress.quantize.task import qat_to

    with terminal() as progress:
        found = qat_to(out, model, task, config, start, progress=progress)
    emit_json(found) if json else show(_text(found))


def _text(found: QuantizedFolder) -> str:
    """What was made, in a few lines."""
    counts = {kind: list(found.precisions.values()).count(kind) for kind in sorted(set(found.precisions.values()))}
    lines = [f"Layers    {', '.join(f'{n} {kind}' for kind, n in counts.items())}; all others float32"]
    if found.before is not None and found.after is not None:
        lines.append(f"Score     {found.before:.4f} before, {found.after:.4f} after ({100 * (found.after - found.before):+.2f} pt), validation split")
    if found.mb_after is not None:
        lines.append(f"Size      {found.mb_before:.1f} MB before, {found.mb_after:.1f} MB after ({found.mb_before / found.mb_after:.1f}x)")
    unit = "nats" if found.after is not None else "of its weights"  # without a task there are no outputs to compare
    lines += [f"Spared    {name} ({sensitivity:.2g} {unit})" for name, sensitivity in found.kept.items()]
    lines += [f"Note      {note}" for note in found.notes]
    return "\n".join([*lines, f"Model     {found.folder}"])
