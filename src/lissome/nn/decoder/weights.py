"""Weights for the decoder kernel: from a GGUF file exactly as they stand there, or from a Llama-shaped transformers model, rounded or not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lissome.core.errors import BadModel
from lissome.kernels.decoder.ffn import ACTIVATIONS, BY_NEURON, Ffn
from lissome.kernels.decoder.native import Layer, Weights
from lissome.kernels.decoder.packed import Codes, Packed, pack, pack_by_neuron
from lissome.nn.decoder.check import check_gguf, check_sizes
from lissome.nn.decoder.gguf import Gguf
from lissome.nn.ffn.plan import plan_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GGUF_NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
LLAMA_NAMES = {
    **{name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
ARCHITECTURES = ("llama",)
Rounding = Callable[[str, torch.Tensor], torch.Tensor | Codes]
"""(name, weights [outputs, inputs]) -> what the kernel is to read."""


def from_gguf(file: Gguf, positions: int | None = None) -> Weights:
    """The decoder in a GGUF file; codes stay the codes they are. positions: turned ahead, where fewer than the model was made for will do.

    Raises BadModel for an architecture that is not offered, and for parts that do not fit one another.
    """
    plan = gguf_plan(file, positions)
    heads, kv_heads, dim = plan.heads, plan.kv_heads, plan.dim
    unturned = {"q": heads, "k": kv_heads}

    def layer(at: int) -> Layer:
        parts = {name: file.tensor(f"blk.{at}.{stored}.weight") for name, stored in GGUF_NAMES.items()}
        parts |= {name: halves_first(parts[name], count) for name, count in unturned.items()}
        norm, ffn_norm = (_floats(file.tensor(f"blk.{at}.{name}.weight")) for name in ("attn_norm", "ffn_norm"))
        return Layer(norm, ffn_norm, {name: pack(one) for name, one in parts.items()})

    embedding = pack(file.tensor("token_embd.weight"))
    head = pack(file.tensor("output.weight")) if "output.weight" in file.entries else embedding
    cosine, sine = rotations(dim, plan.positions, plan.base)
    norm = _floats(file.tensor("output_norm.weight"))
    return Weights([layer(at) for at in range(plan.layers)], embedding, head, norm, cosine, sine, heads, kv_heads, dim, plan.epsilon, dim**-0.5)


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

    def made(name: str, module: torch.nn.Module, by_neuron: bool = False) -> Packed:
        weight: Any = module.weight
        weight = weight.detach().float()
        if by_neuron:
            return pack_by_neuron(rounded(name, weight.T.contiguous() if name.endswith("down_proj") else weight))
        return pack(rounded(name, weight))

    def layer(at: int, block: Any) -> Layer:
        ffn = _ffn(model, at)
        by_neuron = BY_NEURON.get(ffn.kind, ())
        matrices = {name: made(f"layers.{at}.{inner}", block.get_submodule(inner), name in by_neuron) for name, inner in LLAMA_NAMES.items()}
        return Layer(block.input_layernorm.weight.detach(), block.post_attention_layernorm.weight.detach(), matrices, ffn)

    layers = [layer(at, block) for at, block in enumerate(body.layers)]
    embedding = made("embed_tokens", body.embed_tokens)
    head = embedding if config.tie_word_embeddings else made("lm_head", model.lm_head)
    angles = torch.arange(config.max_position_embeddings)[:, None].float() * body.rotary_emb.inv_freq.float()
    scaled = body.rotary_emb.attention_scaling
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, body.layers[0].self_attn.head_dim
    rotation = (angles.cos() * scaled, angles.sin() * scaled)
    return Weights(layers, embedding, head, body.norm.weight.detach(), *rotation, heads, kv_heads, dim, config.rms_norm_eps, dim**-0.5)


def _ffn(model: PreTrainedModel, at: int) -> Ffn:
    """What a layer's feed-forward part is, by the model's plan. One that silences nothing but exact zeros of silu is the dense one."""
    plan, own = plan_of(model), model.config.hidden_act
    if plan is None:
        return Ffn(activation=own)
    activation: Any = own if plan.activation == "same" else plan.activation
    threshold = plan.thresholds[at] if plan.thresholds else 0.0
    if not threshold and activation == "silu":
        return Ffn(activation=activation)
    return Ffn("gate-first" if plan.on == "gate" else "product", activation, threshold)


def rotations(dim: int, positions: int, base: float, begin: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [positions - begin, dim / 2] of rotary embeddings (Su et al. 2021), from the position `begin` on."""
    rates = 1.0 / base ** (torch.arange(0, dim, 2).float() / dim)
    angles = torch.arange(begin, positions)[:, None].float() * rates
    return angles.cos(), angles.sin()


def halves_first(weights: torch.Tensor | Codes, heads: int) -> torch.Tensor | Codes:
    """Rows of queries or keys in the order in which halves are rotated, from GGUF's, in which neighbours are."""
    if isinstance(weights, Codes):
        return dataclasses.replace(weights, **{name: _turned(getattr(weights, name), heads) for name in ("codes", "scale", "offset")})
    return _turned(weights, heads)


def _turned(rows: torch.Tensor, heads: int) -> torch.Tensor:
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape).contiguous()


def _real(file: Gguf, key: str, default: float) -> float:
    value = file.metadata.get(key, default)
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BadModel(f'its metadata has {value!r:.50} for "{key}"', where=str(file.path), expected="a number above 0")
    return float(value)


def _floats(weights: torch.Tensor | Codes) -> torch.Tensor:
    return weights.dense() if isinstance(weights, Codes) else weights


def numbers_of(file: Gguf, prefix: str) -> Callable[..., int]:
    """(key, default) -> a whole number above 0 of the metadata under the prefix. Raises BadModel for anything else."""

    def number(key: str, default: int | None = None) -> int:
        value = file.metadata.get(prefix + key, default)
        if not isinstance(value, int) or value < 1:
            raise BadModel(f'its metadata has {value} for "{prefix}{key}"', where=str(file.path), expected="a whole number above 0")
        return value

    return number
