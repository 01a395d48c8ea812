"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.engines.table import MIXED, Load, Support
from lissome.machine.versions import installed

if TYPE_CHECKING:
    import numpy as np


def support(isa: Sequence[str]) -> Support:
    """fp32, both int8 forms and a precision per layer; ONNX Runtime's CPU kernels have no bf16 for whole models."""
    version = installed("onnxruntime") if installed("onnx") and installed("onnxscript") else None
    if version is None:
        return Support("onnxruntime", None, "onnx", (), {"*": 'not installed; pip install "lissome[onnx]"'})
    return Support(
        "onnxruntime", version, "onnx", ("fp32", "int8-dynamic", "int8-static", MIXED), {"bf16": "ONNX Runtime's CPU kernels do not run whole models in bf16"}
    )


def load(form: Path, how: Load) -> OrtSession:
    """Open the form's ONNX file."""
    return OrtSession(form, how)


class OrtSession:
    """An inference session; with probes, the graph gains the layers' values as outputs."""

    def __init__(self, form: Path, how: Load):
        import onnxruntime as ort

        described = json.loads((form / "form.json").read_text(encoding="utf-8"))
        options = ort.SessionOptions()
        options.intra_op_num_threads = how.threads
        options.log_severity_level = 3
        self.probed: dict[str, str] = {}
        source: Any = str(form / described["file"])
        if how.probes:
            source, self.probed = _with_outputs(form / described["file"], described.get("layers", {}))
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        elif how.shapes:
            for name, sizes in how.shapes.items():
                for dimension, size in zip(described["dims"].get(name, ()), sizes, strict=False):
                    if isinstance(dimension, str):
                        options.add_free_dimension_override_by_name(dimension, size)
        self.session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.inputs = {one.name for one in self.session.get_inputs()}
        self.how, self.version = how, ort.__version__

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Outputs as float32."""
        array: np.ndarray = self.session.run(["output"], {k: v for k, v in inputs.items() if k in self.inputs})[0]
        return array

    def layers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Values of the probed layers."""
        if not self.probed:  # asked for no outputs, ONNX Runtime gives all
            return {}
        values = self.session.run(list(self.probed.values()), {k: v for k, v in inputs.items() if k in self.inputs})
        return dict(zip(self.probed, values, strict=True))

    def describe(self) -> dict[str, str]:
        """Version, threads, precision."""
        return {"engine": "onnxruntime", "version": self.version, "threads": str(self.how.threads), "precision": self.how.precision}


def _with_outputs(path: Path, layers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """The graph with the layers' values added to its outputs, and those layers whose value it still has."""
    import onnx

    model = onnx.load(str(path))
    made = {name for node in model.graph.node for name in node.output}
    kept = {layer: value for layer, value in layers.items() if value in made}
    already = {one.name for one in model.graph.output}
    for value in dict.fromkeys(kept.values()):
        if value not in already:
            model.graph.output.append(onnx.ValueInfoProto(name=value))
    return model.SerializeToString(), kept
