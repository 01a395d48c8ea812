"""`prune`: remove the channels, heads, neurons and blocks that matter least."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissome.cli.emit import JsonFlag, ModelArgument, TaskOption, configured, emit_json, show
from lissome.core.progress import terminal

if TYPE_CHECKING:
    from lissome.compress.prune import Pruned


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command()(prune)


def prune(
    model: ModelArgument,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="Folder for the pruned model.")],
    ratio: Annotated[float, typer.Option(help="Share of the units to remove from every group.")] = 0.25,
    importance: Annotated[str, typer.Option(help="How a unit is scored: gradient, taylor, l1, l2 or activation.")] = "taylor",
    compare: Annotated[str, typer.Option(help='"group": every group loses the same share; "global": the units of all groups compete.')] = "group",
    drop_blocks: Annotated[int, typer.Option(help="Whole blocks to remove, the least important ones.")] = 0,
    round_to: Annotated[int | None, typer.Option(help="Widths are left a multiple of this; by default what kernels here like.")] = None,
    through_norms: Annotated[bool, typer.Option("--through-norms", help="Cut the hidden size of transformers too.")] = False,
    json: JsonFlag = False,
) -> None:
    """Remove what matters least in MODEL on a task and write a folder that `lissome fine-tune` and `lissome optimize` take."""
    from lissome.compress.prune import PruneConfig, prune_to

    options = {"ratio": ratio, "importance": importance, "compare": compare, "drop_blocks": drop_blocks, "round_to": round_to, "through_norms": through_norms}
    config = configured(PruneConfig, "pruning", **options)
    with terminal() as progress:
        pruned = prune_to(out, model, task, config, progress=progress)
    emit_json(pruned) if json else show(*_told(pruned))


def _told(pruned: Pruned) -> list[Any]:
    """The table of groups, what was left alone, and what it came to."""
    from rich.table import Table

    table = Table("group", "kind", "before", "after", box=None, pad_edge=False)
    for group in pruned.groups:
        table.add_row(group.name, group.kind, str(group.before), str(group.after))
    reasons: dict[str, list[str]] = {}
    for one in pruned.left:
        reasons.setdefault(one.reason, []).append(one.name)
    alone = [f"Left alone, as {reason}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if names[3:] else ''}" for reason, names in reasons.items()]
    (before, after), (score, now) = pruned.parameters, pruned.score
    lines = [
        f"parameters        {before:,} -> {after:,} ({after / before - 1:+.1%})",
        f"validation score  {score:.4f} -> {now:.4f} (not trained since: `lissome fine-tune` brings back much of it)",
        f"Model             {pruned.folder}",
    ]
    return [table, *(["\n".join(alone)] if alone else []), "\n".join(lines)]
