"""Whether a decoder's parts fit one another, before any kernel reads them: a file may claim anything."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lissome.core.errors import BadModel
from lissome.kernels.decoder.native import Layer, Weights
from lissome.nn.decoder.gguf import Gguf

DIM_MOST, DIM_MULTIPLE = 256, 16
"""Of a head's width, as the kernel has it (native/attention.h)."""
POSITIONS_MOST = 1 << 20
LAYERS_MOST = 1 << 12


def check_weights(weights: Weights, where: str) -> None:
    """Raise BadModel, naming the first part that does not fit the others."""
    w = weights
    check_sizes(len(w.layers), w.heads, w.kv_heads, w.dim, w.cosine.shape[0] if w.cosine.ndim == 2 else 0, where)
    hidden, q, kv = w.embedding.columns, w.heads * w.dim, w.kv_heads * w.dim
    _same("the head", (w.head.rows, w.head.columns), (w.embedding.rows, hidden), where)
    for name, rotation in (("cosine", w.cosine), ("sine", w.sine)):
        _same(name, tuple(rotation.shape), (w.cosine.shape[0], w.dim // 2), where)
    _same("the last norm", tuple(w.norm.shape), (hidden,), where)
    for at, layer in enumerate(w.layers):
        for name, norm in (("attention_norm", layer.attention_norm), ("ffn_norm", layer.ffn_norm)):
            _same(f"layer {at}, {name}", tuple(norm.shape), (hidden,), where)
        expected = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
        for name in layer.ffn.names():
            expected[name] = _of_ffn(layer, name, hidden)
        if layer.ffn.experts is not None and layer.matrices["router"].bits != 32:
            raise BadModel(f"layer {at}: its router is in {layer.matrices['router'].bits} bits", where=where, expected="a router in float32")
        neurons = {one.rows for name, one in layer.matrices.items() if name.startswith("experts.") and name.endswith(".gate")}
        if len(neurons) > 1:
            raise BadModel(f"layer {at}: its experts have {', '.join(map(str, sorted(neurons)))} neurons", where=where, expected="experts of one size")
        for name, shape in expected.items():
            if name in layer.matrices:
                _same(f"layer {at}, {name}", (layer.matrices[name].rows, layer.matrices[name].columns), shape, where)
    if not (math.isfinite(w.epsilon) and w.epsilon >= 0 and math.isfinite(w.scale)):
        raise BadModel(f"its epsilon is {w.epsilon} and its scale {w.scale}", where=where, expected="finite numbers")


def _of_ffn(layer: Layer, name: str, hidden: int) -> tuple[int, int]:
    """The shape that a matrix of the feed-forward part has to have, by how many neurons its gate, or without one its `up`, has."""
    if name == "router":
        return (layer.ffn.experts.count if layer.ffn.experts else 0), hidden
    prefix = name.rpartition(".")[0]
    prefix = f"{prefix}." if prefix else ""
    first = f"{prefix}{'gate' if f'{prefix}gate' in layer.ffn.names() else 'up'}"
    neurons = layer.matrices[first].rows if first in layer.matrices else 0
    return (hidden, neurons) if name.endswith("down") and layer.matrices[name].layout == "tiles" else (neurons, hidden)


def check_sizes(layers: int, heads: int, kv_heads: int, dim: int, positions: int, where: str) -> None:
    """Raise BadModel for sizes that no kernel takes, or that would take all memory."""
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise BadModel(f"it has {heads} heads and {kv_heads} of keys", where=where, expected="heads that share those of keys evenly")
    if dim % DIM_MULTIPLE or not DIM_MULTIPLE <= dim <= DIM_MOST:
        raise BadModel(f"its heads are {dim} wide", where=where, expected=f"a multiple of {DIM_MULTIPLE} up to {DIM_MOST}")
    if not 1 <= positions <= POSITIONS_MOST:
        raise BadModel(f"it has {positions:,} positions", where=where, expected=f"1 to {POSITIONS_MOST:,}")
    if not 0 <= layers <= LAYERS_MOST:
        raise BadModel(f"it has {layers:,} layers", where=where, expected=f"up to {LAYERS_MOST:,}")


def check_gguf(file: Gguf, names: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    """Raise BadModel unless every tensor of a Llama-shaped decoder is there, in the shape that the metadata says.

    names: our name -> the file's, of a layer's matrices. sizes: layers, hidden, heads, kv_heads, dim.
    """
    hidden, q, kv = sizes["hidden"], sizes["heads"] * sizes["dim"], sizes["kv_heads"] * sizes["dim"]
    vocabulary = _shape(file, "token_embd.weight")[0]
    expected = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    if "output.weight" in file.entries:
        expected["output.weight"] = (vocabulary, hidden)
    ffn = _shape(file, f"blk.0.{names['gate']}.weight")[0]
    shapes = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q), "gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}
    for at in range(sizes["layers"]):
        expected |= {f"blk.{at}.{names[name]}.weight": shape for name, shape in shapes.items()}
        expected |= {f"blk.{at}.{name}.weight": (hidden,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in expected.items():
        _same(f'the tensor "{name}"', _shape(file, name), shape, str(file.path))


def _shape(file: Gguf, name: str) -> tuple[int, ...]:
    if name not in file.entries:
        raise BadModel(f'there is no tensor "{name}".', where=str(file.path), expected="a whole model of the architecture that it names")
    return file.entries[name].shape


def _same(what: str, found: tuple[int, ...], expected: tuple[int, ...], where: str) -> None:
    if found != expected:
        raise BadModel(f"{what} has the shape {list(found)}", where=where, expected=f"{list(expected)}, to fit the rest")
