"""torch.compile with frozen weights (Inductor). Needs a C++ compiler where it runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.engines import torch_eager
from lissome.engines.table import Load, Support
from lissome.machine.compiler import compiler

if TYPE_CHECKING:
    import numpy as np


def support(isa: Sequence[str]) -> Support:
    """As torch, provided that there is a compiler."""
    eager = torch_eager.support(isa)
    if compiler() is None:
        return Support("torch.compile", eager.version, "", (), {"*": "torch.compile needs a C++ compiler here; install g++ (Debian: apt install g++)"})
    return replace(eager, engine="torch.compile")


def load(form: Path, how: Load) -> torch_eager.TorchSession:
    """Compile the form's module; the first calls do the compiling."""
    os.environ.setdefault("TORCHINDUCTOR_FREEZING", "1")  # weights become constants that oneDNN prepacks
    import torch

    module, names = torch_eager.load_module(form)
    if how.precision == "bf16":
        module = module.to(torch.bfloat16)
    compiled: Any = torch.compile(module, dynamic=how.shapes is None)
    return CompiledSession(compiled, names, replace(how, probes=False))


class CompiledSession(torch_eager.TorchSession):
    """A compiled module; the precision was set before compiling."""

    def layers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Nothing: fused layers have no outputs of their own."""
        return {}

    def describe(self) -> dict[str, str]:
        """As torch, with the compiler."""
        return {**super().describe(), "engine": "torch.compile", "compiler": compiler() or ""}
