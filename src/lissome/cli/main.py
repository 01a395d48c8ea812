"""The `lissome` command: its verbs, and how errors leave it."""

from __future__ import annotations

import errno
import functools
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

import typer

from lissome.core.errors import EnvironmentLacks, Interrupted, LissomeError
from lissome.version import VERSION

USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""Base of the errors in how a command was typed; some versions of typer bring their own copy of click, so it is found through typer."""

app = typer.Typer(
    name="lissome",
    help="Makes a model fit the machine you own, and proves it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"lissome {VERSION}")
        raise typer.Exit


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")] = False) -> None:
    """Makes a model fit the machine you own, and proves it."""


CONCERNS = (
    "optimizing",
    "artifacts",
    "machines",
    "models",
    "assembling",
    "pruning",
    "attending",
    "activating",
    "exiting",
    "quantizing",
    "training",
    "decoding",
    "experts",
    "tasks",
    "cached",
    "claims",
)
"""Files of verbs in this folder, in the order in which `lissome --help` shows them."""


@functools.cache
def _register() -> None:
    """Bring the verbs in; each file holds the verbs of one concern."""
    for name in CONCERNS:
        importlib.import_module(f"lissome.cli.{name}").register(app)


def run(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code. No traceback reaches the user."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    _register()
    try:
        outcome = typer.main.get_command(app).main(args=arguments, prog_name="lissome", standalone_mode=False)
        code = outcome if isinstance(outcome, int) else 0
        return _interrupted(as_json) if code == Interrupted.exit_code else code  # typer turns Ctrl-C into that code
    except typer.Exit as leaving:
        return int(leaving.exit_code)
    except USAGE as wrong:
        return _fail(f"{wrong.format_message()}\n  Do this:  lissome --help, or lissome VERB --help", 2, as_json, "BadInput")
    except Interrupted as stopped:
        return _fail(str(stopped), stopped.exit_code, as_json, "Interrupted", stopped.found)
    except LissomeError as error:
        return _fail(str(error), error.exit_code, as_json, type(error).__name__)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left (`| head`); nothing more to say
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = EnvironmentLacks(
                "no disk space left.", where=str(error.filename or "") or None, do="free some space; `lissome cache clear` frees lissome's own"
            )
            return _fail(str(full), full.exit_code, as_json, "EnvironmentLacks")
        return _bug(error, as_json)
    except Exception as error:  # noqa: BLE001  the last resort: a bug is reported as one, not as a traceback
        return _bug(error, as_json)


def _interrupted(as_json: bool) -> int:
    stopped = Interrupted("Interrupted. What was learned so far is kept.", do="run the same command again: it goes on from there")
    return _fail(str(stopped), stopped.exit_code, as_json, "Interrupted")


def _fail(message: str, code: int, as_json: bool, kind: str, found: Mapping[str, Any] | None = None) -> int:
    if as_json:
        print(json.dumps({"error": {"kind": kind, "message": message, "exit_code": code}, **(found or {})}))  # noqa: T201
    print(message, file=sys.stderr)  # noqa: T201
    return code


def _bug(error: BaseException, as_json: bool) -> int:
    with tempfile.NamedTemporaryFile("w", prefix="lissome-bug-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(error)))
    return _fail(f"This is a bug in lissome: {type(error).__name__}: {error}\n  Do this:  report it with the file {file.name}", 1, as_json, "Bug")


def main() -> NoReturn:
    """The console script."""
    sys.exit(run())
