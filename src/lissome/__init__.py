"""lissome makes a model fit the machine you own, and proves it.

    import lissome
    result = lissome.optimize("MODEL", "task.yaml", lissome.Contract(max_drop="1%", latency="2x"))
    predict = lissome.load(result.folder)
    predict(["a text"])

Names are imported on first use: `import lissome` loads neither torch nor any engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lissome.version import VERSION as __version__

if TYPE_CHECKING:
    from lissome.core.cache import Cache
    from lissome.core.contract import Contract, Verdict
    from lissome.core.errors import LissomeError
    from lissome.core.measurement import Measurement
    from lissome.core.model import Model
    from lissome.core.task import Split, Task
    from lissome.data import check_task, load_task
    from lissome.engines.artifact import open_artifact as load
    from lissome.machine.probe import probe
    from lissome.nn.load import load_model
    from lissome.optimize.recheck import verify
    from lissome.optimize.run import Optimized, optimize
    from lissome.report.html import write_report
    from lissome.train.config import FinetuneConfig, TrainConfig
    from lissome.train.finetune import finetune
    from lissome.train.loop import train

_HOMES = {
    "Cache": "core.cache",
    "Contract": "core.contract",
    "FinetuneConfig": "train.config",
    "LissomeError": "core.errors",
    "Measurement": "core.measurement",
    "Model": "core.model",
    "Optimized": "optimize.run",
    "Split": "core.task",
    "Task": "core.task",
    "TrainConfig": "train.config",
    "Verdict": "core.contract",
    "check_task": "data",
    "finetune": "train.finetune",
    "load": "engines.artifact:open_artifact",
    "load_model": "nn.load",
    "load_task": "data",
    "optimize": "optimize.run",
    "probe": "machine.probe",
    "train": "train.loop",
    "verify": "optimize.recheck",
    "write_report": "report.html",
}

__all__ = [
    "Cache",
    "Contract",
    "FinetuneConfig",
    "LissomeError",
    "Measurement",
    "Model",
    "Optimized",
    "Split",
    "Task",
    "TrainConfig",
    "Verdict",
    "__version__",
    "check_task",
    "finetune",
    "load",
    "load_model",
    "load_task",
    "optimize",
    "probe",
    "train",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    home, _, inner = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(f"lissome.{home}"), inner or name)
    globals()[name] = value
    return value
