"""A task from the user's own code: `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from lissome.core.errors import BadTask, LissomeError, closest
from lissome.core.task import Task
from lissome.core.trust import name_target
from lissome.data.tasks.assemble import check_splits


def factory_task(ref: str, model_dir: Path | None) -> Task:
    """Import `package.module`, call `function()` (with model_dir= if it takes that) and check the Task it returns.

    The current folder can be imported from. Raises BadTask when the import, the call or its result is not what is expected.
    """
    module_name, _, name = ref.partition(":")
    function = _function(ref, module_name, name)
    try:
        takes_dir = "model_dir" in inspect.signature(function).parameters
        made = function(model_dir=model_dir) if takes_dir else function()
    except LissomeError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise BadTask(f"{name}() failed: {type(error).__name__}: {error}", where=_last_line(error), do=f"call {name}() in Python until it works") from error
    if not isinstance(made, Task):
        raise BadTask(f"{name}() returned {type(made).__name__}", where=ref, expected="a lissome.core.task.Task")
    name_target(ref)
    return replace(check_splits(made, ref), ref=ref)


def _function(ref: str, module_name: str, name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = f'there is no module "{error.name}"'
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise BadTask(
                missing, where=ref, expected="package.module:function", do="run from the folder that holds the module, or install its package"
            ) from error
        raise BadTask(f"{missing}, which {module_name} imports", where=ref, do="install the package that brings it") from error
    except Exception as error:  # the user's own code may raise anything
        raise BadTask(
            f"importing {module_name} failed: {type(error).__name__}: {error}", where=_last_line(error), do=f"run `python -c 'import {module_name}'`"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise BadTask(f'{module_name} has no function "{name}".{closest(name, known)}', where=ref, expected="package.module:function")
    return function


def _last_line(error: BaseException) -> str:
    """file:line where the error was raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
