"""Layers whose weights alone are small: 8 and 4 bits with a scale per group, embedding tables with a scale per row, and bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lissome.core.errors import BadInput
from lissome.core.quantization import grouped, integers
from lissome.export.graph import Edits

if TYPE_CHECKING:
    from lissome.export.qdq import Product

MICROSOFT = "com.microsoft"
BFLOAT16, FLOAT = 16, 1
"""ONNX's numbers of these types (onnx.TensorProto)."""
BLOCK = 128
"""Block size for layers with one scale per row: MatMulNBits needs one, and the scale is repeated."""


def linear(edits: Edits, product: Product) -> list[Any]:
    """A linear layer as com.microsoft's MatMulNBits: x [.., in] times groups of 8- or 4-bit weights, in float; its bias added after."""
    if product.node.op_type == "Gather":
        return embedding(edits, product)
    if product.node.op_type == "Conv":
        raise BadInput(f"the convolution {product.layer} cannot be {product.quant.precision}.", expected="int8-static, bf16 or fp32")
    node, layer, quant, scales = product.node, product.layer, product.quant, product.known()
    bits, block = (4 if quant.precision == "w4a16" else 8), quant.group or BLOCK
    middle = 2 ** (bits - 1)  # MatMulNBits takes weights without a sign
    outputs, inputs = product.weight.shape
    whole = integers(product.weight, quant, scales)
    blocks = grouped(whole.reshape(outputs, -1)[:, :inputs], block)
    codes = (blocks + (middle if scales.zero is None else 0)).astype(np.uint8)
    scale = np.broadcast_to(scales.weight.reshape(outputs, -1), (outputs, blocks.shape[1])).astype(np.float32)
    names = [
        product.data,
        edits.constant(f"{layer}.weight_{bits}bit", packed(codes, bits)),
        edits.constant(f"{layer}.weight_scale", scale.reshape(-1)),
    ]
    if scales.zero is not None:
        zero = np.broadcast_to(scales.zero.reshape(outputs, -1), (outputs, blocks.shape[1])).astype(np.uint8)
        names.append(edits.constant(f"{layer}.weight_zero", packed(zero, bits).reshape(-1)))
    output = str(node.output[0])
    biased = node.op_type == "Gemm" and len(node.input) > 2 and bool(node.input[2])
    result = f"{output}_product" if biased else output
    nodes = [edits.node("MatMulNBits", names, [result], MICROSOFT, K=inputs, N=outputs, bits=bits, block_size=block)]
    return [*nodes, edits.node("Add", [result, node.input[2]], [output])] if biased else nodes


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [..., n] as bytes: two 4-bit codes a byte, the first in the low half."""
    if bits == 8:
        return codes
    even = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    found: np.ndarray = (even[..., 0::2] | (even[..., 1::2] << 4)).astype(np.uint8)
    return found


def embedding(edits: Edits, product: Product) -> list[Any]:
    """A table of int8 rows, each with its scale: rows and scales are looked up, then multiplied."""
    node, layer, scales = product.node, product.layer, product.known()
    if scales.zero is not None or product.quant.group is not None:
        raise BadInput(f"the embedding {layer} takes one symmetric scale a row.", expected='LayerQuant(precision="w8a16")')
    output = str(node.output[0])
    table = edits.constant(f"{layer}.weight_int8", integers(product.weight, product.quant, scales).astype(np.int8))
    scale = edits.constant(f"{layer}.weight_scale", scales.weight.reshape(-1, 1))
    return [
        edits.node("Gather", [table, product.data], [f"{output}_rows"], axis=0),
        edits.node("Cast", [f"{output}_rows"], [f"{output}_rows_float"], to=FLOAT),
        edits.node("Gather", [scale, product.data], [f"{output}_scales"], axis=0),
        edits.node("Mul", [f"{output}_rows_float", f"{output}_scales"], [output]),
    ]


def bfloat16(edits: Edits, product: Product) -> list[Any]:
    """Weights kept in 16 bits and widened when they are used; the products stay in float."""
    node, layer = product.node, product.layer
    kept = np.ascontiguousarray(product.weight.T if product.turned else product.weight)
    narrow = edits.constant(f"{layer}.weight_bf16", to_bfloat16(kept), BFLOAT16)
    output = str(node.output[0])
    if node.op_type == "Gather":
        return [edits.copy(node, [narrow, product.data], [f"{output}_bf16"]), edits.node("Cast", [f"{output}_bf16"], [output], to=FLOAT)]
    wide = f"{output}_weight"
    return [edits.node("Cast", [narrow], [wide], to=FLOAT), edits.copy(node, [product.data, wide, *node.input[2:]])]


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """float32 as the upper 16 bits, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    found: np.ndarray = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return found
