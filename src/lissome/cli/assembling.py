"""`build` and `swap`: models put together from parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissome.cli.emit import JsonFlag, emit_json, show
from lissome.core.errors import BadInput

if TYPE_CHECKING:
    from lissome.core.model import Model

PartOption = "A kind, or a kind with options as YAML: "


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(build)
    app.command()(swap)


def build(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML or JSON file, a preset (llama, bert, vit, mobile), or a model to take over.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer that goes with it.")] = None,
    json: JsonFlag = False,
) -> None:
    """Build a model from CONFIG with fresh weights, or take a Hugging Face model or GGUF file over into parts, and print parts and parameters."""
    from lissome.nn.models.folder import build_to

    model = build_to(out, config, tokenizer)
    _tell(model, out, json)


def swap(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder that `lissome build` wrote, or a Hugging Face model or GGUF file of a known shape.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    attention: Annotated[str | None, typer.Option(metavar="PART", help=PartOption + "\"{kind: sparse, pattern: 'window(256)'}\".")] = None,
    ffn: Annotated[str | None, typer.Option(metavar="PART", help=PartOption + "relu2.")] = None,
    norm: Annotated[str | None, typer.Option(metavar="PART", help=PartOption + '"{kind: rms, eps: 1.0e-6}".')] = None,
    positions: Annotated[str | None, typer.Option(metavar="PART", help=PartOption + "rotary.")] = None,
    head: Annotated[list[str] | None, typer.Option(metavar="NAME=PART", help='Add or change a head: "topic={kind: classification, classes: 4}".')] = None,
    remove_head: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Remove a head.")] = None,
    layers: Annotated[str | None, typer.Option(help='Blocks whose attention, ffn and norm change: "0,2,5"; all by default.')] = None,
    json: JsonFlag = False,
) -> None:
    """Swap parts of MODEL, carry weights over where names and shapes fit, and list what is new."""
    from lissome.nn.models.folder import swap_to

    changes: list[tuple[str, Any, str | None]] = []
    for role, text in (("attention", attention), ("ffn", ffn), ("norm", norm), ("positions", positions)):
        if text is not None:
            changes.append((role, _part(text, f"--{role}"), None))
    for text in head or []:
        name, sign, part = text.partition("=")
        if not sign:
            raise BadInput(f'--head: "{text}" names no part', expected='NAME=PART, such as "topic={kind: classification, classes: 4}"')
        changes.append(("head", _part(part, "--head"), name))
    changes += [("head", None, name) for name in remove_head or []]
    found, new, left = swap_to(out, model, changes, _numbers(layers))
    _tell(found, out, json, {"new": new, "left": left})


def _tell(model: Model, out: Path, json: bool, more: dict[str, Any] | None = None) -> None:
    """Parts, parameters and what is new."""
    from lissome.nn.models.assembly import made_of_parts, parts_table
    from lissome.report.markdown import markdown_table

    rows = parts_table(made_of_parts(model.module, "this"))
    total = sum(count for _, _, count in rows)
    if json:
        emit_json({"folder": str(out), "parameters": total, "parts": [{"place": a, "part": b, "parameters": c} for a, b, c in rows], **(more or {})})
        return
    lines = [f"{total:,} parameters"]
    for word, names in (more or {}).items():
        said = {"new": "New, with fresh weights", "left": "Left behind, as it has no place"}[word]
        lines.append(f"{said}: {', '.join(names[:6]) or 'nothing'}{f' and {len(names) - 6} more' if names[6:] else ''}")
    show(markdown_table([[a, b, f"{c:,}"] for a, b, c in rows], ["place", "part", "parameters"]), "\n".join([*lines, f"Model  {out}"]))


def _part(text: str, option: str) -> Any:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f'{option}: "{text}" is not YAML', expected='a kind, or "{kind: ..., option: ...}"') from error
    if not isinstance(found, str | dict):
        raise BadInput(f'{option}: "{text}" is no part', expected='a kind, or "{kind: ..., option: ...}"')
    return found


def _numbers(layers: str | None) -> list[int] | None:
    if layers is None:
        return None
    if not all(word.strip().isdecimal() for word in layers.split(",")):
        raise BadInput(f'--layers: "{layers}" is no list of blocks', expected='whole numbers with commas between, such as "0,2,5"')
    return [int(word) for word in layers.split(",")]
