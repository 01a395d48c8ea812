"""INT8 forms: ONNX Runtime dynamic and static (QDQ), OpenVINO static through NNCF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.core.errors import MissingExtra
from lissome.export.onnx import quiet

PRODUCTS = ("MatMul", "Gemm", "Conv", "Gather")
"""What ONNX Runtime quantises in a graph with attention: products and embedding tables. Its default takes the sums as well, and with them the
attention mask, whose -3e38 stretches the scale until every score is zero."""

if TYPE_CHECKING:
    import numpy as np

    Batches = Sequence[Mapping[str, np.ndarray]]


def onnx_int8_dynamic(source: Path, folder: Path, *, reduce_range: bool) -> None:
    """Per-channel int8 weights, activations quantised per tensor as they come (onnxruntime.quantization).

    reduce_range: 7-bit weights, for CPUs without VNNI, whose int8 products saturate otherwise.
    """
    _need_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        prepared = _prepared(source, folder)
        quantize_dynamic(str(prepared), str(folder / "model.onnx"), per_channel=True, reduce_range=reduce_range, weight_type=QuantType.QInt8)
    _finish(source, prepared, folder)


def onnx_int8_static(source: Path, folder: Path, batches: Batches, *, reduce_range: bool) -> None:
    """QDQ with per-channel weights and activation ranges from calibration batches: their minima and maxima, as moving averages over batches.

    In graphs with attention only products and tables are quantised.
    """
    _need_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    names = set(json.loads((source / "form.json").read_text(encoding="utf-8"))["inputs"])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands the calibration batches over, once."""

        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Any:
            """The next batch, or None at the end."""
            batch = next(self.left, None)
            return None if batch is None else {k: v for k, v in batch.items() if k in names}

    with quiet():
        prepared = _prepared(source, folder)
        quantize_static(
            str(prepared),
            str(folder / "model.onnx"),
            Reader(),
            op_types_to_quantize=list(PRODUCTS) if has_attention(source) else None,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True, "CalibMovingAverageConstant": 0.05},
        )
    _finish(source, prepared, folder)


def _prepared(source: Path, folder: Path) -> Path:
    """The graph with shapes inferred anew; the exporter's own annotations contradict the quantiser's."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load(str(source / "model.onnx"))
    del model.graph.value_info[:]
    bare = folder / "bare.onnx"
    onnx.save(model, str(bare))
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(bare), str(prepared), skip_symbolic_shape=True)
    bare.unlink()
    return prepared


def has_attention(source: Path) -> bool:
    """Whether the ONNX form in `source` multiplies by something that went through a softmax."""
    import onnx

    weighed: set[str] = set()
    for node in onnx.load(str(source / "model.onnx"), load_external_data=False).graph.node:
        after_softmax = not weighed.isdisjoint(node.input)
        if node.op_type in ("Attention", "MultiHeadAttention") or (after_softmax and node.op_type == "MatMul"):
            return True
        if after_softmax or node.op_type == "Softmax":
            weighed.update(node.output)
    return False


def _need_onnxruntime() -> None:
    try:
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", "onnx", "int8 for ONNX Runtime") from error


def _finish(source: Path, prepared: Path, folder: Path) -> None:
    prepared.unlink()
    shutil.copy(source / "form.json", folder / "form.json")


def to_openvino(source: Path, folder: Path, *, half: bool) -> None:
    """OpenVINO IR from the ONNX form; `half` stores the weights in 16 bits."""
    ov = _openvino()
    with quiet():
        model = ov.Core().read_model(str(source / "model.onnx"))
        ov.save_model(model, str(folder / "model.xml"), compress_to_fp16=half)
    _describe_openvino(source, folder)


def openvino_int8_static(source: Path, folder: Path, batches: Batches, *, reduce_range: bool) -> None:
    """NNCF post-training quantisation of the OpenVINO graph: int8 weights and activations, fast bias correction.

    In graphs with attention NNCF's own scheme for transformers is used, which keeps softmax and norms in float.
    reduce_range: 7-bit weights in every layer; NNCF's default spares only the first layer the overflow.
    """
    ov = _openvino()
    try:
        with quiet():
            import nncf
            from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    except ModuleNotFoundError as error:
        raise MissingExtra("nncf", "openvino", "int8 on OpenVINO") from error
    names = json.loads((source / "form.json").read_text(encoding="utf-8"))["inputs"]
    with quiet():
        model = ov.Core().read_model(str(source / "model.onnx"))
        data = nncf.Dataset([{name: batch[name] for name in names} for batch in batches])
        quantized = nncf.quantize(
            model,
            data,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if has_attention(source) else None,
            advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE if reduce_range else OverflowFix.DISABLE),
        )
        ov.save_model(quantized, str(folder / "model.xml"), compress_to_fp16=False)
    _describe_openvino(source, folder)


def _openvino() -> Any:
    from lissome.export.telemetry import silence_telemetry

    silence_telemetry()
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtra("openvino", "openvino", "exporting to OpenVINO") from error
    return openvino


def _describe_openvino(source: Path, folder: Path) -> None:
    form = json.loads((source / "form.json").read_text(encoding="utf-8"))
    form.update(engine="openvino", file="model.xml")
    (folder / "form.json").write_text(json.dumps(form, indent=1), encoding="utf-8")
