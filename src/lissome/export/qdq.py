"""Quantised ONNX graphs written from our own scales: what was simulated is what is deployed.

int8-static: QuantizeLinear and DequantizeLinear around the products, which ONNX Runtime fuses into MatMulIntegerToFloat, QGemm and QLinearConv, and
OpenVINO into its int8 kernels. int8-dynamic: DynamicQuantizeLinear and MatMulInteger, as ONNX Runtime's own dynamic quantiser writes them.
Weight-only layers are in `weight_only`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lissome.core.errors import BadInput, MissingExtra
from lissome.core.quantization import LayerQuant, LayerScales, Quantization, Range, Scales, integers
from lissome.export import weight_only
from lissome.export.graph import Edits, Uint8, scope_of

PRODUCTS = ("MatMul", "Gemm", "Conv", "Gather")


@dataclass(frozen=True)
class Product:
    """A node that computes a layer, or the product in it.

    weight: as torch keeps it, [out, in, ...]; embeddings [rows, width]. turned: whether the node takes it as [in, out].
    """

    layer: str
    node: Any
    weight: np.ndarray
    turned: bool
    quant: LayerQuant
    scales: LayerScales | None

    @property
    def data(self) -> str:
        """Name of the activation (of the indices, for an embedding)."""
        return str(self.node.input[1 if self.node.op_type == "Gather" else 0])

    def known(self) -> LayerScales:
        """The scales. Raises BadInput where there are none."""
        if self.scales is None:
            raise BadInput(f"the layer {self.layer} is to be {self.quant.precision}, but has no scales.", do="quantize the model again")
        return self.scales


def write_quantized(source: Path, folder: Path, quantization: Quantization, scales: Scales, *, fused: bool = False) -> Path:
    """Write the quantised graph of the fp32 ONNX form in `source` into `folder`, with its form.json; return the ONNX file.

    fused: int8-static products with their bias as one operator of ONNX Runtime's own, MatMulIntegerToFloat, which its optimiser would leave apart
    (the same numbers, in less time). Without it the graph is plain ONNX.
    Raises BadInput when a layer is not in the graph or has no scales, MissingExtra without onnx.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtra("onnx", "onnx", "writing a quantised graph") from error
    edits = Edits(onnx.load(str(source / "model.onnx")))
    for product in products(edits, quantization, scales):
        writer = _fused if fused and product.quant.precision == "int8-static" and product.node.op_type == "MatMul" else WRITERS[product.quant.precision]
        edits.replace(product.node, writer(edits, product))
    path = folder / "model.onnx"
    onnx.save(edits.finish(), str(path))
    shutil.copy(source / "form.json", folder / "form.json")
    return path


def products(edits: Edits, quantization: Quantization, scales: Scales) -> list[Product]:
    """The nodes that compute the layers of `quantization`, in graph order. Raises BadInput naming a layer that is not there."""
    layers = {name: quant for name, quant in quantization.layers.items() if quant.precision != "fp32"}
    homes = {**{name: name for name in layers}, **{quantization.output_of(name): name for name in layers}}
    found: list[Product] = []
    for node in edits.graph.node:
        if node.op_type not in PRODUCTS:
            continue
        layer = homes.get(scope_of(node))
        weight = edits.weight(node.input[0 if node.op_type == "Gather" else 1]) if layer else None
        if layer is None or weight is None or weight.ndim < 2:
            continue
        turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0))
        found.append(Product(layer, node, weight.T if turned else weight, turned, layers[layer], scales.layers.get(layer)))
    absent = layers.keys() - {product.layer for product in found}
    if absent:
        raise BadInput(
            f"the layer {min(absent)} was not found in the exported graph.",
            expected=f"one of {', '.join(PRODUCTS)} with its weight",
            do="leave it in float: give it the precision fp32 in `layers`",
        )
    return found


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _quantized(edits: Edits, value: str, kept: Range) -> tuple[Uint8, list[Any]]:
    """The value rounded to uint8, and the nodes that do it and undo it; none when an earlier layer has them already."""
    key = (value, kept.scale, kept.zero)
    if key in edits.quantized:
        return edits.quantized[key], []
    name = f"{value}_u8{len([k for k in edits.quantized if k[0] == value]) or ''}"
    scale, zero = edits.constant(f"{name}_scale", np.float32(kept.scale)), edits.constant(f"{name}_zero", np.uint8(kept.zero))
    edits.quantized[key] = Uint8(name, scale, zero)
    return edits.quantized[key], [
        edits.node("QuantizeLinear", [value, scale, zero], [name]),
        edits.node("DequantizeLinear", [name, scale, zero], [f"{name}_float"]),
    ]


def _static(edits: Edits, product: Product) -> list[Any]:
    """The product between DequantizeLinear nodes; the bias in int32 where the engine fuses it only so (Gemm and Conv)."""
    node, layer, scales = product.node, product.layer, product.known()
    if node.op_type == "Gather":
        return weight_only.embedding(edits, product)
    data, nodes = _quantized(edits, product.data, _range(product))
    whole = integers(product.weight, product.quant, scales).astype(np.int8).reshape(product.weight.shape)
    scale = edits.constant(f"{layer}.weight_scale", scales.weight)
    zero = edits.constant(f"{layer}.weight_zero", np.zeros(len(scales.weight), dtype=np.int8))
    quantized = edits.constant(f"{layer}.weight_int8", whole.T if product.turned else whole)
    weight = f"{node.output[0]}_weight"
    nodes.append(edits.node("DequantizeLinear", [quantized, scale, zero], [weight], axis=1 if product.turned else 0))
    inputs = [f"{data.name}_float", weight]
    if len(node.input) > 2 and node.input[2]:
        bias = edits.weight(node.input[2])
        if bias is None or bias.shape != scales.weight.shape:
            raise BadInput(f"the bias of the layer {layer} is no constant with one value per output.", do="give it the precision fp32 in `layers`")
        nodes += _bias(edits, product, bias, scales, _range(product))
        inputs.append(f"{node.output[0]}_bias")
    output = str(node.output[0])
    if scales.output is None:
        return [*nodes, edits.copy(node, inputs)]
    kept = scales.output
    name = f"{output}_u8"
    scale, zero = edits.constant(f"{name}_scale", np.float32(kept.scale)), edits.constant(f"{name}_zero", np.uint8(kept.zero))
    return [
        *nodes,
        edits.copy(node, inputs, [f"{output}_whole"]),
        edits.node("QuantizeLinear", [f"{output}_whole", scale, zero], [name]),
        edits.node("DequantizeLinear", [name, scale, zero], [output]),
    ]


def _range(product: Product) -> Range:
    """The range of the layer's input. Raises BadInput where there is none."""
    kept = product.known().input
    if kept is None:
        raise BadInput(f"the layer {product.layer} is to be int8-static, but its input has no range.", do="quantize the model again, with calibration batches")
    return kept


def _fused(edits: Edits, product: Product) -> list[Any]:
    """Product, scales and bias as one node; the Add that follows it is taken in."""
    after = edits.bias_after(product.node)
    if after is None:
        return _static(edits, product)
    add, bias = after
    layer, scales = product.layer, product.known()
    data, nodes = _quantized(edits, product.data, _range(product))
    weight = edits.constant(f"{layer}.weight_int8", integers(product.weight, product.quant, scales).astype(np.int8).T)
    scale = edits.constant(f"{layer}.weight_scale", scales.weight)
    zero = edits.constant(f"{layer}.weight_zero", np.zeros(len(scales.weight), dtype=np.int8))
    edits.replace(add, [])
    return [
        *nodes,
        edits.node("MatMulIntegerToFloat", [data.name, weight, data.scale, scale, data.zero, zero, bias], [str(add.output[0])], weight_only.MICROSOFT),
    ]


def _bias(edits: Edits, product: Product, bias: np.ndarray, scales: LayerScales, kept: Range) -> list[Any]:
    """The bias as int32 at the scale of the sums, input scale times weight scale."""
    scale = (np.float32(kept.scale) * scales.weight.astype(np.float32)).astype(np.float32)
    whole = np.rint(bias.astype(np.float64) / scale)
    limit = np.iinfo(np.int32)
    quantized = edits.constant(f"{product.layer}.bias_int32", np.clip(whole, limit.min, limit.max).astype(np.int32))
    name = edits.constant(f"{product.layer}.bias_scale", scale)
    zero = edits.constant(f"{product.layer}.bias_zero", np.zeros(len(scale), dtype=np.int32))
    return [edits.node("DequantizeLinear", [quantized, name, zero], [f"{product.node.output[0]}_bias"], axis=0)]


def _dynamic(edits: Edits, product: Product) -> list[Any]:
    """x -> uint8 by its own range; the integer product; its scale and the bias in float."""
    node, layer, scales = product.node, product.layer, product.known()
    if node.op_type == "Gather":
        return weight_only.embedding(edits, product)
    if node.op_type == "Conv":
        raise BadInput(f"the convolution {layer} cannot be int8-dynamic.", expected="int8-static, bf16 or fp32")
    value, output, nodes = product.data, str(node.output[0]), []
    if (value, 0.0, -1) not in edits.quantized:
        edits.quantized[value, 0.0, -1] = Uint8(f"{value}_d8", f"{value}_d8_scale", f"{value}_d8_zero")
        nodes.append(edits.node("DynamicQuantizeLinear", [value], [f"{value}_d8", f"{value}_d8_scale", f"{value}_d8_zero"]))
    data = edits.quantized[value, 0.0, -1]
    whole = integers(product.weight, product.quant, scales).astype(np.int8)
    weight = edits.constant(f"{layer}.weight_int8", whole.T)
    zero = edits.constant(f"{layer}.weight_zero", np.zeros(len(scales.weight), dtype=np.int8))
    scale = edits.constant(f"{layer}.weight_scale", scales.weight)
    biased = node.op_type == "Gemm" and len(node.input) > 2 and bool(node.input[2])
    result = f"{output}_product" if biased else output
    nodes += [
        edits.node("MatMulInteger", [data.name, weight, data.zero, zero], [f"{output}_sums"]),
        edits.node("Cast", [f"{output}_sums"], [f"{output}_sums_float"], to=1),
        edits.node("Mul", [data.scale, scale], [f"{output}_scale"]),
        edits.node("Mul", [f"{output}_sums_float", f"{output}_scale"], [result]),
    ]
    return [*nodes, edits.node("Add", [result, node.input[2]], [output])] if biased else nodes


WRITERS: dict[str, Callable[[Edits, Product], list[Any]]] = {
    "int8-static": _static,
    "int8-dynamic": _dynamic,
    "w8a16": weight_only.linear,
    "w4a16": weight_only.linear,
    "bf16": weight_only.bfloat16,
}
