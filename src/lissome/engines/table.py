"""The engines lissome knows, what they support here, and the two shapes every engine module has.

An engine is a module with `support(isa) -> Support` and `load(form, precision, ...) -> Session`; nothing is inherited.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lissome.core.errors import MissingExtra

if TYPE_CHECKING:
    import numpy as np

ENGINES: dict[str, str] = {
    "torch": "lissome.engines.torch_eager",
    "torch.compile": "lissome.engines.torch_compiled",
    "onnxruntime": "lissome.engines.ort",
    "openvino": "lissome.engines.openvino",
}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
"""The extra that brings an engine; torch is always there."""
PRECISIONS = ("fp32", "bf16", "int8-dynamic", "int8-static")
"""What an engine makes of a whole model by itself."""
MIXED = "mixed"
"""The precision of forms with a precision per layer: they are built from a quantised model, so no engine can be asked for one by name."""


class Session(Protocol):
    """A loaded form, ready to run."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Outputs as float32 [batch, ...]."""

    def layers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of the probed layers, by layer name in execution order; empty unless loaded with probes."""

    def describe(self) -> dict[str, str]:
        """What really runs: threads, precision, device."""


@dataclass(frozen=True)
class Support:
    """What an engine supports on this machine.

    version: None when it is not installed; `extra` is then what brings it. precisions: those worth trying.
    missing: precision (or "*" for the whole engine) -> why it is not offered here.
    """

    engine: str
    version: str | None
    extra: str = ""
    precisions: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    def why_not(self, precision: str) -> str:
        """Why a precision is not offered here."""
        return self.missing.get(precision) or self.missing.get("*") or f"{self.engine} does not run {precision} here"


@dataclass(frozen=True)
class Load:
    """How a form is to be loaded.

    threads: cores to use. shapes: fixed input shapes, or None for any. probes: whether the layers' own outputs are wanted (see Session.layers).
    """

    precision: str
    threads: int
    shapes: Mapping[str, Sequence[int]] | None = None
    probes: bool = False


def engine(name: str) -> Any:
    """The module of an engine. Raises KeyError for a name that is not in the table."""
    return importlib.import_module(ENGINES[name])


def has_bf16(isa: Sequence[str]) -> bool:
    """Whether the CPU multiplies in bfloat16 itself."""
    return any(name.lower().replace("-", "_") in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16") for name in isa)


def load(name: str, form: Path, how: Load) -> Session:
    """Load a form with the engine called `name`. Raises MissingExtra when the engine is not installed."""
    try:
        session: Session = engine(name).load(form, how)
    except ModuleNotFoundError as error:
        if name not in EXTRAS:
            raise
        raise MissingExtra(str(error.name), EXTRAS[name], f"running on {name}") from error
    return session
