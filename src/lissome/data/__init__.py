"""Sources and tasks: where data comes from, how it is split, and what a model is scored on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lissome.data.check import TaskReport, check_task
    from lissome.data.digits import digits_task
    from lissome.data.sentiment import sentiment_file, sentiment_task
    from lissome.data.sources import SOURCES, Source, fetch
    from lissome.data.tasks import load_task

_HOME = {
    "SOURCES": "sources",
    "Source": "sources",
    "TaskReport": "check",
    "check_task": "check",
    "digits_task": "digits",
    "fetch": "sources",
    "load_task": "tasks",
    "sentiment_file": "sentiment",
    "sentiment_task": "sentiment",
}
__all__ = [
    "SOURCES",
    "Source",
    "TaskReport",
    "check_task",
    "digits_task",
    "fetch",
    "load_task",
    "sentiment_file",
    "sentiment_task",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import lissome.data` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
