"""Weights for the decoder kernel: from a GGUF file exactly as they stand there, or from a Llama-shaped transformers model, rounded or not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lissome.core.errors import BadModel
from lissome.kernels.decoder.arrays import Array, room
from lissome.kernels.decoder.ffn import ACTIVATIONS, BY_NEURON, Ffn
from lissome.kernels.decoder.native import Layer, Weights
from lissome.kernels.decoder.packed import ROWS, Bits, Codes, Packed, pack, pack_by_neuron, packed_bytes
from lissome.nn.decoder.check import check_gguf, check_sizes
from lissome.nn.decoder.gguf import Gguf, slice_rows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

GGUF_NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
LLAMA_NAMES = {
    **{name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
ARCHITECTURES = ("llama",)
TURNED, GROUP = ("q", "k"), 32
"""Matrices whose rows llama.cpp lays out in another order; columns that share a scale in every block of a GGUF file."""
Rounding = Callable[[str, "torch.Tensor"], "torch.Tensor | Codes"]
"""(name, weights [outputs, inputs]) -> what the kernel is to read."""
SLICE = 1 << 18
"""Weights of a file that are packed at a time, so that no whole tensor is in memory twice."""


def from_gguf(file: Gguf, positions: int | None = None) -> Weights:
    """The decoder in a GGUF file; codes stay the codes they are. positions: turned ahead, where fewer than the model was made for will do.

    Raises BadModel for an architecture that is not offered, and for parts that do not fit one another.
    """
    plan = gguf_plan(file, positions)
    heads, kv_heads, dim = plan.heads, plan.kv_heads, plan.dim

    def layer(at: int) -> Layer:
        norm, ffn_norm = (floats_of(file, f"blk.{at}.{name}.weight") for name in ("attn_norm", "ffn_norm"))
        return Layer(norm, ffn_norm, {name: _packed(file, f"blk.{at}.{stored}.weight", dim if name in TURNED else 0) for name, stored in GGUF_NAMES.items()})

    embedding = _packed(file, "token_embd.weight")
    head = _packed(file, "output.weight") if "output.weight" in file.entries else embedding
    cosine, sine = rotations(dim, plan.positions, plan.base)
    norm = floats_of(file, "output_norm.weight")
    return Weights([layer(at) for at in range(plan.layers)], embedding, head, norm, cosine, sine, heads, kv_heads, dim, plan.epsilon, dim**-0.5)


def _packed(file: Gguf, stored: str, dim: int = 0) -> Packed:
    """A matrix of the file in the kernel's layout. dim: of the heads whose rows are turned, 0 where none are."""
    (rows, columns), bits = file.entries[stored].shape, bits_of(file, stored)
    data, begin = room(packed_bytes(rows, columns, bits, GROUP), np.uint8), 0
    for part in packed_slices(file, stored, dim):
        data[begin : begin + part.size] = part
        begin += part.size
    return Packed(data, rows, columns, bits, GROUP)


def bits_of(file: Gguf, stored: str) -> Bits:
    """Of a matrix's codes, or 32 for floats. Raises BadModel for a tensor that is no matrix."""
    entry = file.entries[stored]
    if len(entry.shape) != 2:
        raise BadModel(f'the tensor "{stored}" has the shape {list(entry.shape)}', where=str(file.path), expected="rows and columns")
    return 4 if entry.kind in ("Q4_0", "Q4_1") else 8 if entry.kind == "Q8_0" else 32


def packed_slices(file: Gguf, stored: str, dim: int = 0) -> Iterator[Array]:
    """Bytes of a packed matrix, some tiles of rows at a time; the file's pages are given back on the way. dim: as for `_packed`."""
    rows, columns = file.entries[stored].shape
    whole = math.lcm(dim or ROWS, ROWS)  # tiles and heads are not cut
    step = max(1, SLICE // columns // whole) * whole
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        part = slice_rows(file, stored, begin, end)
        yield pack(halves_first(part, (end - begin) // dim) if dim else part).data
        file.mapped.drop([file.entries[stored].span])


def floats_of(file: Gguf, stored: str) -> Array:
    """A tensor as float32, whatever it is stored in; its pages are given back."""
    found = file.tensor(stored)
    file.mapped.drop([file.entries[stored].span])
    return found.dense() if isinstance(found, Codes) else found


@dataclass(frozen=True)
class Plan:
    """Sizes of the decoder in a GGUF file. positions: turned ahead; base: of the rotations."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    dim: int
    positions: int
    base: float
    epsilon: float


def gguf_plan(file: Gguf, positions: int | None = None) -> Plan:
    """What a file's metadata says, held against its tensors. Raises BadModel for an architecture that is not offered, and for parts that do not fit."""
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise BadModel(f'its architecture is "{architecture!s:.50}"', where=str(file.path), expected=", ".join(ARCHITECTURES))
    number = numbers_of(file, f"{architecture}.")
    heads, hidden, layers = (number(key) for key in ("attention.head_count", "embedding_length", "block_count"))
    kv_heads = number("attention.head_count_kv", heads)
    dim = number("attention.key_length", max(1, hidden // heads))
    context = number("context_length")
    turned = min(context, positions or context)
    check_sizes(layers, heads, kv_heads, dim, turned, str(file.path))
    check_gguf(file, GGUF_NAMES, {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "dim": dim})
    base = _real(file, f"{architecture}.rope.freq_base", 10000.0)
    epsilon = _real(file, f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    return Plan(layers, hidden, heads, kv_heads, dim, turned, base, epsilon)


CHANGING = ("dynamic", "longrope")
"""Ways of scaling positions (transformers' rope_type) by which a token's rotation depends on how long the text is."""


def from_llama(model: PreTrainedModel, rounding: Rounding | None = None) -> Weights:
    """The decoder of a Llama-shaped transformers model; `rounding` says what each matrix becomes, floats without.

    A model with an `ActivationPlan` becomes one whose silent neurons are skipped: its `down` matrices, and with a threshold on the gate its `up` matrices, are
    laid out by neuron, and `down` is given to `rounding` transposed [neurons, hidden].
    Raises BadModel where the model is of another shape (biases, other norms or activations, rotations that change with the length).
    """
    config: Any = model.config
    if config.model_type != "llama" or config.hidden_act not in ACTIVATIONS or config.attention_bias or config.mlp_bias:
        expected = f"a Llama-shaped model with {', '.join(ACTIVATIONS)} and without biases"
        raise BadModel(f"a {config.model_type} with {config.hidden_act} is not offered", expected=expected)
    turning = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if turning in CHANGING:
        raise BadModel(f'positions scaled as "{turning}" are not offered', expected="rotations that do not change with the length")
    body: Any = model.model
    rounded = rounding or (lambda _, weight: weight)

    def floats(tensor: Any) -> Any:
        return tensor.detach().float().cpu()

    def made(name: str, module: torch.nn.Module, by_neuron: bool = False) -> Packed:
        weight = floats(module.weight)
        if by_neuron:
            return pack_by_neuron(rounded(name, weight.T.contiguous() if name.endswith("down_proj") else weight))
        return pack(rounded(name, weight))

    def layer(at: int, block: Any) -> Layer:
        ffn = _ffn(model, at)
        by_neuron = BY_NEURON.get(ffn.kind, ())
        matrices = {name: made(f"layers.{at}.{inner}", block.get_submodule(inner), name in by_neuron) for name, inner in LLAMA_NAMES.items()}
        return Layer(floats(block.input_layernorm.weight).numpy(), floats(block.post_attention_layernorm.weight).numpy(), matrices, ffn)

    layers = [layer(at, block) for at, block in enumerate(body.layers)]
    embedding = made("embed_tokens", body.embed_tokens)
    head = embedding if config.tie_word_embeddings else made("lm_head", model.lm_head)
    angles = np.arange(config.max_position_embeddings, dtype=np.float32)[:, None] * floats(body.rotary_emb.inv_freq).numpy()
    scaled = body.rotary_emb.attention_scaling
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, body.layers[0].self_attn.head_dim
    rotation = (np.cos(angles) * np.float32(scaled), np.sin(angles) * np.float32(scaled))
    return Weights(layers, embedding, head, floats(body.norm.weight).numpy(), *rotation, heads, kv_heads, dim, config.rms_norm_eps, dim**-0.5)


def _ffn(model: PreTrainedModel, at: int) -> Ffn:
    """What a layer's feed-forward part is, by the model's plan. One that silences nothing but exact zeros of silu is the dense one."""
    from lissome.nn.ffn.plan import plan_of  # of torch's modules, which a packed decoder does without

    plan, own = plan_of(model), model.config.hidden_act
    if plan is None:
        return Ffn(activation=own)
    activation: Any = own if plan.activation == "same" else plan.activation
    threshold = plan.thresholds[at] if plan.thresholds else 0.0
    if not threshold and activation == "silu":
        return Ffn(activation=activation)
    return Ffn("gate-first" if plan.on == "gate" else "product", activation, threshold)


def rotations(dim: int, positions: int, base: float, begin: int = 0) -> tuple[Array, Array]:
    """Cosine and sine [positions - begin, dim / 2] of rotary embeddings (Su et al. 2021), float32, from the position `begin` on."""
    rates = (1.0 / base ** (np.arange(0, dim, 2) / dim)).astype(np.float32)
    angles = np.arange(begin, positions, dtype=np.float32)[:, None] * rates
    return np.cos(angles), np.sin(angles)


def halves_first(weights: Array | Codes, heads: int) -> Array | Codes:
    """Rows of queries or keys in the order in which halves are rotated, from GGUF's, in which neighbours are."""
    if isinstance(weights, Codes):
        return dataclasses.replace(weights, **{name: _turned(getattr(weights, name), heads) for name in ("codes", "scale", "offset")})
    return _turned(weights, heads)


def _turned(rows: Array, heads: int) -> Array:
    return np.ascontiguousarray(rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2)).reshape(rows.shape)


def _real(file: Gguf, key: str, default: float) -> float:
    value = file.metadata.get(key, default)
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BadModel(f'its metadata has {value!r:.50} for "{key}"', where=str(file.path), expected="a number above 0")
    return float(value)


def numbers_of(file: Gguf, prefix: str) -> Callable[..., int]:
    """(key, default) -> a whole number above 0 of the metadata under the prefix. Raises BadModel for anything else."""

    def number(key: str, default: int | None = None) -> int:
        value = file.metadata.get(prefix + key, default)
        if not isinstance(value, int) or value < 1:
            raise BadModel(f'its metadata has {value} for "{prefix}{key}"', where=str(file.path), expected="a whole number above 0")
        return value

    return number
