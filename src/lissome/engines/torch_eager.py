"""torch as it is: the module, called. The baseline of every comparison is this engine in fp32."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.engines.safety import check_form
from lissome.engines.table import Load, Support, has_bf16
from lissome.machine.versions import installed

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


def support(isa: Sequence[str]) -> Support:
    """fp32 everywhere; bf16 where the CPU multiplies in it (elsewhere torch emulates it, slower than fp32)."""
    native = has_bf16(isa)
    missing = {
        "int8-dynamic": "torch's eager mode has no maintained int8 path on CPUs",
        "int8-static": "torch's eager mode has no maintained int8 path on CPUs",
    }
    if not native:
        missing["bf16"] = "this CPU has no bf16 instructions; torch would emulate them"
    return Support("torch", installed("torch"), "", ("fp32", "bf16") if native else ("fp32",), missing)


def load(form: Path, how: Load) -> TorchSession:
    """Load the form's module in the wanted precision."""
    module, names = load_module(form)
    return TorchSession(module, names, how)


def load_module(form: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """The form's module behind positional inputs, and the inputs' names. Raises BadArtifact for a form that must not be loaded."""
    import torch

    from lissome.nn.call import Positional
    from lissome.nn.load import build

    check_form(form)
    described = json.loads((form / "form.json").read_text(encoding="utf-8"))
    names = tuple(described["inputs"])
    if described["file"].endswith(".pt2"):
        return torch.export.load(str(form / described["file"])).module(), names
    return Positional(build(form, vouched=True), names), names


class TorchSession:
    """A module in one precision, with a hook on every leaf layer when probed."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], how: Load):
        import torch

        torch.set_num_threads(how.threads)
        self.torch, self.names, self.how = torch, names, how
        self.module: Any = module.to(torch.bfloat16) if how.precision == "bf16" else module
        self.seen: dict[str, np.ndarray] = {}
        if how.probes:
            for name, layer in module.named_modules():
                if not list(layer.children()):
                    layer.register_forward_hook(self._hook(name.removeprefix("module.")))

    def _hook(self, name: str) -> Any:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, self.torch.Tensor):
                self.seen.pop(name, None)  # a layer that is called twice counts where it was called last
                self.seen[name] = output.detach().float().numpy().copy()

        return keep

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Outputs as float32."""
        torch = self.torch
        tensors = [torch.from_numpy(inputs[name]) for name in self.names]
        if self.how.precision == "bf16":
            tensors = [t.to(torch.bfloat16) if t.is_floating_point() else t for t in tensors]
        with torch.inference_mode():
            array: np.ndarray = self.module(*tensors).float().numpy()
        return array

    def layers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of every leaf layer in the order they ran."""
        self.seen.clear()
        self.run(inputs)
        return dict(self.seen)

    def describe(self) -> dict[str, str]:
        """torch version, threads, precision."""
        return {"engine": "torch", "version": self.torch.__version__, "threads": str(self.torch.get_num_threads()), "precision": self.how.precision}
