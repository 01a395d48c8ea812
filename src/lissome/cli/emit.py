"""What every verb shares: its `--json` and cache options, progress on stderr, one document on stdout."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import pydantic
import typer

from lissome.core.config import Config, config_error
from lissome.core.errors import BadInput

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress stays on stderr.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hugging Face directory or id, package.module:factory, factory@weights.safetensors, or an artifact.")
]
TaskOption = Annotated[str, typer.Option("--task", metavar="TASK", help="Task file (YAML), or package.module:function.")]


def emit_json(value: Any) -> None:
    """Print `value` as one JSON document."""
    print(json.dumps(plain(value), indent=1, ensure_ascii=False))  # noqa: T201


def plain(value: Any) -> Any:
    """Configs, dataclasses and containers of them as JSON-able values."""
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def show(*parts: Any) -> None:
    """Print text and tables on stdout, in colour only on a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    for i, part in enumerate(parts):
        if i and part != "":
            console.print()
        # Text is not wrapped again: a command broken over two lines cannot be copied.
        console.print(part, markup=False, soft_wrap=True) if isinstance(part, str) else console.print(part)


def configured(schema: type[Config], what: str, **values: Any) -> Any:
    """A config from command-line options; what is wrong is said in the options' own names."""
    try:
        return schema(**{name: value for name, value in values.items() if value is not None})
    except pydantic.ValidationError as error:
        found = config_error(error, schema, what)
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}" if first["loc"] else what
        message = first["msg"].removeprefix("Value error, ")
        raise BadInput(f"{option}: {message}" if first["loc"] else message) from found
