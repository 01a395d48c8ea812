"""Modules from the user's own code, `package.module:factory`, with their state from safetensors."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lissome.core.errors import BadModel, closest
from lissome.core.model import Model


def call_factory(target: str, config: Mapping[str, Any]) -> nn.Module | Model:
    """What the function that `target` names returns when called with `config`. Raises BadModel with the reason, whatever it is."""
    module_name, _, name = target.partition(":")
    function = getattr(_imported(module_name, target), name, None)
    if not callable(function):
        package = sys.modules[module_name]
        names = [n for n in dir(package) if callable(getattr(package, n)) and not n.startswith("_")]
        raise BadModel(f'"{module_name}" has no function "{name}".{closest(name, names)}', where=target)
    try:
        inspect.signature(function).bind(**config)
    except TypeError as error:
        given = f"with {', '.join(config)}" if config else "without arguments"
        raise BadModel(f"the factory cannot be called {given}: {error}", where=target, do="give every parameter a default") from error
    except ValueError:  # a function in C tells no signature
        pass
    try:
        made = function(**config)
    except BadModel:
        raise
    except Exception as error:  # whatever the user's own code raises, it is the factory that failed
        raise BadModel(f"the factory failed: {type(error).__name__}: {first_line(error)}", where=target, do="call it in Python to see where") from error
    if not isinstance(made, nn.Module | Model):
        raise BadModel(f"the factory returned {type(made).__name__}.", where=target, expected="a torch.nn.Module")
    return made


def load_state(module: nn.Module, path: Path, target: str) -> None:
    """Load a whole state into `module`, strictly. Raises BadModel when the file is absent, broken, or of another model."""
    from safetensors import SafetensorError
    from safetensors.torch import load_model as load_safetensors

    try:
        load_safetensors(module, str(path), strict=True)
    except FileNotFoundError:
        raise BadModel("the weights file does not exist.", where=str(path)) from None
    except (SafetensorError, OSError) as error:
        raise BadModel(f"the weights file cannot be read: {first_line(error)}", where=str(path), expected="a safetensors file, whole") from error
    except RuntimeError as error:
        raise BadModel(
            f"the weights do not fit {target}: {' '.join(str(error).split())[:300]}",
            where=str(path),
            do="use the factory and the arguments that the weights were trained with",
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _imported(module_name: str, target: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a factory in the user's own folder is the usual case
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        absent = str(error.name)
        own = module_name == absent or module_name.startswith(f"{absent}.")
        do = "run lissome from the folder that holds the module, or install it" if own else f"install {absent}, which the module imports"
        raise BadModel(f'cannot import "{module_name}": {error}', where=target, do=do) from error
    except Exception as error:  # the user's module runs when it is imported, and may raise anything
        raise BadModel(
            f'importing "{module_name}" failed: {type(error).__name__}: {first_line(error)}', where=target, do="import it in Python to see where"
        ) from error
