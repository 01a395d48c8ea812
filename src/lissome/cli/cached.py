"""`cache`: what lissome keeps on disk."""

from __future__ import annotations

from typing import Annotated

import typer

from lissome.cli.emit import JsonFlag, emit_json, show
from lissome.core.errors import BadInput


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    group = typer.Typer(help="What lissome keeps on disk, and clearing it.", invoke_without_command=True)
    group.callback()(cache)
    group.command("show")(show_cache)
    group.command()(clear)
    app.add_typer(group, name="cache")


def cache(context: typer.Context, json: JsonFlag = False) -> None:
    """What lissome keeps on disk, and clearing it. Alone it shows what is there."""
    if context.invoked_subcommand is None:
        show_cache(json)
    elif json:
        verb = context.invoked_subcommand
        raise BadInput(f"--json stands before {verb}", expected=f"lissome cache {verb} --json")


def show_cache(json: JsonFlag = False) -> None:
    """Where the cache is and what is in it."""
    from lissome.core.cache import Cache
    from lissome.report.terminal import cache_table

    kept = Cache()
    entries = kept.entries()
    if json:
        emit_json({"folder": str(kept.root), "entries": [{"kind": e.kind, "key": e.key, "bytes": e.bytes, "made": e.made} for e in entries]})
    else:
        show(cache_table(kept.root, entries))


def clear(
    kind: Annotated[str | None, typer.Argument(help="One kind of entry (as `cache show` lists them); all but the ledger without it.")] = None,
    json: JsonFlag = False,
) -> None:
    """Remove what is cached; it is made again when it is needed. The ledger of what test splits have judged goes only by name."""
    from lissome.core.cache import Cache

    freed = Cache().clear(kind)
    emit_json({"freed_bytes": freed}) if json else show(f"{freed / 1e6:.0f} MB freed")
