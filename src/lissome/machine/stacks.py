"""A stack of linear layers in each installed runtime and precision: the smallest thing whose timing says what users of a runtime get.

Every runner takes the same float32 input [rows, first width] and gives an output [rows, last width]; conversions that a precision needs are inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lissome.core.errors import EnvironmentLacks, MissingExtra

if TYPE_CHECKING:
    import numpy as np

Runner = Callable[[], Any]


@dataclass(frozen=True)
class Stack:
    """Linear layers `widths[i] -> widths[i + 1]` without bias, ReLU between them, on `rows` rows (tokens). Weights are random, seeded."""

    rows: int
    widths: tuple[int, ...]

    @property
    def flops(self) -> float:
        """Multiplications and additions of the matrix products of one pass."""
        return 2.0 * self.rows * sum(a * b for a, b in zip(self.widths, self.widths[1:], strict=False))

    def arrays(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """The input, and one weight [in, out] per layer, scaled (He et al. 2015) so that values keep their size through the stack."""
        import numpy as np

        rng = np.random.default_rng(0)
        pairs = zip(self.widths, self.widths[1:], strict=False)
        weights = [rng.standard_normal((a, b), dtype=np.float32) * np.float32((2 / a) ** 0.5) for a, b in pairs]
        return rng.standard_normal((self.rows, self.widths[0]), dtype=np.float32), weights


def torch_runner(stack: Stack, precision: str, threads: int) -> Runner:
    """torch eager, fp32 or bf16."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    x, weights = stack.arrays()
    tensors = [torch.from_numpy(w.T.copy()).to(dtype) for w in weights]
    source = torch.from_numpy(x)

    def run() -> Any:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            y = source.to(dtype)
            for i, weight in enumerate(tensors):
                y = torch.nn.functional.linear(y, weight)
                y = y.relu_() if i + 1 < len(tensors) else y
            return y.to(torch.float32)

    return run


def onnxruntime_runner(stack: Stack, precision: str, threads: int) -> Runner:
    """ONNX Runtime, fp32 or int8-dynamic (DynamicQuantizeLinear and MatMulInteger, as its own quantize_dynamic writes them)."""
    try:
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx", "timing ONNX Runtime") from error
    x, weights = stack.arrays()
    nodes, constants, at = [], [], "x"
    for i, weight in enumerate(weights):
        if precision == "fp32":
            constants.append(numpy_helper.from_array(weight, f"w{i}"))
            nodes.append(helper.make_node("MatMul", [at, f"w{i}"], [f"y{i}"]))
        else:
            quantized, scale = _quantized(weight)
            constants += [numpy_helper.from_array(quantized, f"w{i}"), numpy_helper.from_array(scale, f"s{i}")]
            nodes += [
                helper.make_node("DynamicQuantizeLinear", [at], [f"q{i}", f"qs{i}", f"qz{i}"]),
                helper.make_node("MatMulInteger", [f"q{i}", f"w{i}", f"qz{i}"], [f"i{i}"]),
                helper.make_node("Cast", [f"i{i}"], [f"f{i}"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"qs{i}", f"s{i}"], [f"m{i}"]),
                helper.make_node("Mul", [f"f{i}", f"m{i}"], [f"y{i}"]),
            ]
        at = f"y{i}"
        if i + 1 < len(weights):
            nodes.append(helper.make_node("Relu", [at], [f"r{i}"]))
            at = f"r{i}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [stack.rows, width]) for name, width in (("x", stack.widths[0]), (at, stack.widths[-1]))]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Its threads go on spinning after a run and would disturb whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def openvino_runner(stack: Stack, precision: str, threads: int) -> Runner:
    """OpenVINO, fp32, bf16 or int8-static (FakeQuantize around each product, as NNCF writes it). Raises EnvironmentLacks for bf16 where the CPU has none.

    Outputs of int8-static stacks of at most 8 rows and at most 256 wide are wrong in OpenVINO 2026.4.1 (its fused MLP; SNIPPETS_MODE=DISABLE cures it):
    time larger ones.
    """
    try:
        import openvino as ov
        from openvino import opset13 as ops
    except ImportError as error:
        raise MissingExtra("openvino", "openvino", "timing OpenVINO") from error
    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EnvironmentLacks("this CPU has no bf16 instructions that OpenVINO uses")
    x, weights = stack.arrays()
    parameter = ops.parameter([stack.rows, stack.widths[0]], ov.Type.f32)
    at: Any = parameter
    for i, weight in enumerate(weights):
        factor: Any = ops.constant(weight)
        if precision == "int8-static":
            low = -4.0 if i == 0 else 0.0  # inputs are standard normal, what follows a ReLU is not negative
            at = ops.fake_quantize(at, *(ops.constant(v, ov.Type.f32) for v in (low, 4.0, low, 4.0)), 256)
            peak = abs(weight).max(axis=0, keepdims=True)
            factor = ops.fake_quantize(factor, *(ops.constant(v) for v in (-peak, peak, -peak, peak)), 255)
        at = ops.matmul(at, factor, False, False)
        at = ops.relu(at) if i + 1 < len(weights) else at
    hint = ov.Type.bf16 if precision == "bf16" else ov.Type.f32
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    request = core.compile_model(ov.Model([at], [parameter], "stack"), "CPU", settings).create_infer_request()
    return lambda: request.infer({0: x}, share_inputs=True)[0]


RUNNERS: dict[tuple[str, str], Callable[[Stack, str, int], Runner]] = {
    ("torch", "fp32"): torch_runner,
    ("torch", "bf16"): torch_runner,
    ("onnxruntime", "fp32"): onnxruntime_runner,
    ("onnxruntime", "int8-dynamic"): onnxruntime_runner,
    ("openvino", "fp32"): openvino_runner,
    ("openvino", "bf16"): openvino_runner,
    ("openvino", "int8-static"): openvino_runner,
}
"""Engine and precision -> what builds a runner of a stack."""


def _quantized(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 with one scale for the whole weight, as quantize_dynamic does by default."""
    import numpy as np

    scale = np.float32(abs(weight).max() / 127)
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), np.asarray(scale, dtype=np.float32)
