"""`claims`: what is said of the techniques in here, tried on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli.emit import JsonFlag, emit_json
from lissome.core.progress import terminal


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(claims)


def claims(
    names: Annotated[list[str] | None, typer.Argument(metavar="[CLAIM]...", help="Names of claim files whose benchmarks run.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Run the benchmarks of all claims: hours.")] = False,
    folder: Annotated[Path, typer.Option(help="Where the claim files are.")] = Path("claims"),
    page: Annotated[Path, typer.Option(help="The page to write; it holds a block marked <!-- claims -->.")] = Path("docs/claims.md"),
    render: Annotated[bool, typer.Option("--render", help="Write the page from what was measured before; run nothing.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show the verdicts on the claim files, or run their benchmarks and write what came of them."""
    from lissome.report.claims import kept, read_claims, try_claims, verdict
    from lissome.report.claims import page as rendered
    from lissome.report.markdown import update_marked_block

    if names or everything or render:
        try:
            with terminal() as progress:
                if not render:
                    try_claims(folder, names or (), progress)
        finally:  # what ran is written, whatever failed
            update_marked_block(page, "claims", rendered(folder))
    found = {name: verdict(claim, kept(folder, name)) for name, claim in read_claims(folder).items()}
    if json:
        emit_json(found)
        return
    for name, outcome in found.items():
        typer.echo(f"{name}: {outcome}")
