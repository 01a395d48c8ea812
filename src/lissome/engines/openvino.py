"""OpenVINO on the CPU: fp32, bf16 where the CPU has it, int8 from NNCF calibration, and a precision per layer from our own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.engines.table import MIXED, Load, Support, has_bf16
from lissome.export.telemetry import silence_telemetry
from lissome.machine.versions import installed

if TYPE_CHECKING:
    import numpy as np


def support(isa: Sequence[str]) -> Support:
    """fp32; bf16 as the CPU has it; int8-static with NNCF installed; a precision per layer."""
    version = installed("openvino") if installed("onnx") and installed("onnxscript") else None
    if version is None:
        return Support("openvino", None, "openvino", (), {"*": 'not installed; pip install "lissome[openvino,onnx]"'})
    missing = {"int8-dynamic": "OpenVINO quantises activations from calibration data; see int8-static"}
    precisions = ["fp32"]
    if has_bf16(isa):
        precisions.append("bf16")
    else:
        missing["bf16"] = "this CPU has no bf16 instructions"
    if installed("nncf"):
        precisions.append("int8-static")
    else:
        missing["int8-static"] = 'needs NNCF; pip install "lissome[openvino]"'
    return Support("openvino", version, "openvino", (*precisions, MIXED), missing)


def load(form: Path, how: Load) -> OpenVinoSession:
    """Compile the form's IR for the CPU."""
    return OpenVinoSession(form, how)


class OpenVinoSession:
    """A compiled model and one request."""

    def __init__(self, form: Path, how: Load):
        silence_telemetry()
        import openvino as ov

        described = json.loads((form / "form.json").read_text(encoding="utf-8"))
        core = ov.Core()
        model = core.read_model(str(form / described["file"]))
        if how.shapes:
            model.reshape({name: list(shape) for name, shape in how.shapes.items() if name in described["inputs"]})
            if how.precision in ("int8-static", MIXED) and _wrong_when_static(model):
                model = core.read_model(str(form / described["file"]))  # with free shapes it computes what it should
        self.probed: dict[str, int] = {}
        if how.probes:
            self.probed = _add_outputs(model, described.get("layers", {}))
        self.hint = "bf16" if how.precision == "bf16" else "f32"
        config = {"INFERENCE_PRECISION_HINT": self.hint, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": how.threads, "NUM_STREAMS": 1}
        if how.precision == MIXED:
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # else activations of weight-only layers are rounded to 8 bits, which nobody asked for
        self.compiled = core.compile_model(model, "CPU", config)
        self.request = self.compiled.create_infer_request()
        self.names = [name for name in described["inputs"] if any(name in port.get_names() for port in self.compiled.inputs)]
        self.how, self.version = how, ov.__version__.split("-")[0]

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Outputs as float32."""
        self.request.infer({name: inputs[name] for name in self.names}, share_inputs=True)
        array: np.ndarray = self.request.get_output_tensor(0).data
        return array.copy()

    def layers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Values of the probed layers."""
        self.run(inputs)
        return {layer: self.request.get_output_tensor(i).data.copy() for layer, i in self.probed.items()}

    def describe(self) -> dict[str, str]:
        """Version, threads and the precision that was really set."""
        precision = str(self.compiled.get_property("INFERENCE_PRECISION_HINT")).split("'")[-2] if self.hint == "bf16" else self.how.precision
        return {"engine": "openvino", "version": self.version, "threads": str(self.how.threads), "precision": precision}


def _wrong_when_static(model: Any) -> bool:
    """Whether the int8 graph has a product of fixed rank 2 without a bias.

    Such a product of up to 8 rows, with its output quantised again, gives wild values (1e10 times too large) in OpenVINO 2026.4.1 on x86 with
    AVX-512 VNNI; seen with Linear(bias=False), ReLU, Linear at 1, 4 and 8 rows, never at 9 or more, at rank 3, with a bias, or with free shapes.
    """
    for node in model.get_ops():
        if node.get_type_name() != "MatMul":
            continue
        shape, users = node.output(0).get_partial_shape(), _users(node)
        if len(users) == 1 and users[0].get_type_name() == "Multiply":  # the scales of the quantised weights
            users = _users(users[0])
        if shape.is_static and len(shape) == 2 and not any(_adds_bias(user) for user in users):
            return True
    return False


def _adds_bias(node: Any) -> bool:
    """Whether the node adds a vector; a product without bias comes from ONNX with a scalar zero added, which compiling removes."""
    return node.get_type_name() == "Add" and all(port.get_partial_shape().rank.get_length() > 0 for port in node.inputs())


def _users(node: Any) -> list[Any]:
    return [port.get_node() for port in node.output(0).get_target_inputs()]


def _add_outputs(model: Any, layers: Mapping[str, str]) -> dict[str, int]:
    """Add the layers' values as outputs; return layer -> output index for those that are still in the graph."""
    found: dict[str, int] = {}
    for layer, value in layers.items():
        try:
            model.add_outputs(value)
        except RuntimeError:  # folded or renamed on the way: that layer cannot be compared
            continue
        found[layer] = next(i for i, port in enumerate(model.outputs) if value in port.get_names())
    return found
