"""Weights for the decoder kernel from modules in memory, rounded or not: Llama-shaped transformers models, and models of parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lissome.core.errors import BadModel
from lissome.kernels.decoder.ffn import ACTIVATIONS, BY_NEURON, GATED, Experts, Ffn
from lissome.kernels.decoder.native import Layer, Weights
from lissome.kernels.decoder.packed import Codes, Packed, chosen_rows, pack, pack_by_neuron
from lissome.nn.decoder.check import check_weights
from lissome.nn.decoder.checkpoint import read_json
from lissome.nn.decoder.folder import ATTENTION
from lissome.nn.decoder.weights import LLAMA_NAMES
from lissome.nn.ffn.plan import FIELD as ACTIVATION_FIELD
from lissome.nn.ffn.plan import plan_of
from lissome.nn.models.assembly import FACTORY, ModularModel
from lissome.nn.models.config import BlockConfig, ModelConfig
from lissome.nn.models.parts import Part
from lissome.nn.moe.in_models import FIELD as EXPERTS_FIELD
from lissome.nn.moe.layer import MoE
from lissome.nn.moe.packed import PackedExperts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rounding = Callable[[str, torch.Tensor], "torch.Tensor | Codes"]
"""(name, weights [outputs, inputs]) -> what the kernel is to read."""
TABLES = ("embed_tokens", "lm_head")
"""Names under which a rounding is given the embedding and a head of its own."""
CHANGING = ("dynamic", "longrope")
"""Ways of scaling positions (transformers' rope_type) by which a token's rotation depends on how long the text is."""


def is_modular(folder: Path) -> bool:
    """Whether the decoder in a folder is more than a plain Llama: put together from parts, or with experts or silent neurons."""
    try:
        architecture, config = (read_json(folder / name) or {} for name in ("architecture.json", "config.json"))
    except BadModel:  # what reads the folder says what is wrong with it
        return False
    return architecture.get("target") == FACTORY or any(config.get(field) for field in (EXPERTS_FIELD, ACTIVATION_FIELD))


def from_module(module: nn.Module, rounding: Rounding | None = None, where: str = "") -> Weights:
    """The decoder of a module; `rounding` says what each matrix becomes, floats without. Raises BadModel for what the kernel does not compute, by name."""
    found = from_parts(module, rounding) if isinstance(module, ModularModel) else from_llama(module, rounding)  # type: ignore[arg-type]
    check_weights(found, where)
    return found


def from_llama(model: PreTrainedModel, rounding: Rounding | None = None) -> Weights:
    """The decoder of a Llama-shaped transformers model; `rounding` says what each matrix becomes, floats without.

    Layers of experts become the kernel's. A model with an `ActivationPlan` becomes one whose silent neurons are skipped: its `down` matrices, and with a
    threshold on the gate its `up` matrices, are laid out by neuron, and `down` is given to `rounding` transposed [neurons, hidden].
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

    def made(name: str, owner: Any, by_neuron: bool = False) -> Packed:
        weight = _floats(owner.weight)
        if by_neuron:
            return pack_by_neuron(rounded(name, weight.T.contiguous() if name.endswith("down_proj") else weight))
        return pack(rounded(name, weight))

    def layer(at: int, block: Any) -> Layer:
        experts = experts_of(block.mlp, f"layers.{at}.mlp", rounded)
        ffn, own = experts or (_planned(model, at), {})
        by_neuron = BY_NEURON.get(ffn.kind, ())
        for name, inner in LLAMA_NAMES.items():
            if name in ATTENTION or not experts:
                own[name] = made(f"layers.{at}.{inner}", block.get_submodule(inner), name in by_neuron)
        return Layer(_floats(block.input_layernorm.weight).numpy(), _floats(block.post_attention_layernorm.weight).numpy(), own, ffn)

    layers = [layer(at, block) for at, block in enumerate(body.layers)]
    embedding = made(TABLES[0], body.embed_tokens)
    head = embedding if config.tie_word_embeddings else made(TABLES[1], model.lm_head)
    angles = np.arange(config.max_position_embeddings, dtype=np.float32)[:, None] * _floats(body.rotary_emb.inv_freq).numpy()
    scaled = body.rotary_emb.attention_scaling
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, body.layers[0].self_attn.head_dim
    rotation = (np.cos(angles) * np.float32(scaled), np.sin(angles) * np.float32(scaled))
    return Weights(layers, embedding, head, _floats(body.norm.weight).numpy(), *rotation, heads, kv_heads, dim, config.rms_norm_eps, dim**-0.5)


def from_parts(model: ModularModel, rounding: Rounding | None = None) -> Weights:
    """The decoder of a model of parts. Raises BadModel for a part that the kernel does not compute."""
    rounded = rounding or (lambda _, weight: weight)
    config, trunk, layers = model.config, model.trunk, model.config.layers()
    _check(config)
    blocks: list[Any] = list(trunk.blocks)
    first, head = blocks[0].attention, next(iter(model.heads.values()))

    def layer(at: int, block: Any) -> Layer:
        matrices = {name: pack(rounded(f"layers.{at}.{name}", _floats(getattr(block.attention, f"{name}_proj").weight))) for name in ATTENTION}
        ffn, own = _ffn(block.ffn, layers[at].ffn, f"layers.{at}", rounded)
        return Layer(_floats(block.attention_norm.weight).numpy(), _floats(block.ffn_norm.weight).numpy(), matrices | own, ffn)

    def table(name: str, owner: Any, own: str) -> Packed:
        parts = [_floats(getattr(owner, one).weight) for one in (own, "added") if getattr(owner, one) is not None]
        return pack(rounded(name, torch.cat(parts)))

    embedding = table(TABLES[0], trunk.embedding, "table")
    tied = next(iter(config.heads.values())).options["tied"]
    angles: Any = trunk.positions.angles(config.length, first.dim, torch.device("cpu"))  # type: ignore[operator]
    cosine, sine = (one[:, : first.dim // 2].contiguous().numpy() for one in angles)
    norm: Any = trunk.final_norm
    return Weights(
        [layer(at, block) for at, block in enumerate(blocks)],
        embedding,
        embedding if tied else table(TABLES[1], head, "linear"),
        _floats(norm.weight).numpy(),
        cosine,
        sine,
        first.heads,
        first.kv_heads,
        first.dim,
        norm.eps,
        first.dim**-0.5,
    )


def experts_of(layer: nn.Module, where: str, rounded: Rounding) -> tuple[Ffn, dict[str, Packed]] | None:
    """A layer of experts as the kernel has it; None where the module is none. Raises BadModel for experts that it does not compute."""
    if not isinstance(layer, MoE):
        return None
    config = layer.config
    if not config.gated or config.biases or config.activation not in ACTIVATIONS:
        raise _lacks(f"experts with {config.activation}{'' if config.gated else ', without a gate'}{', with biases' if config.biases else ''}", where)
    bias, offset = (None if one is None or not one.any() else _floats(one).numpy() for one in (layer.router.bias, layer.router.offset))
    routing = Experts(config.experts, config.active, config.scores, config.weights, config.scale, bias, offset, layer.shared is not None)
    matrices = {"router": pack(_floats(layer.router.weight))}
    for number in range(config.experts):
        if isinstance(layer.experts, PackedExperts):
            up, down = (layer.experts.matrix(name, number) for name in ("up", "down"))
            gate, up = (chosen_rows(up, range(begin, begin + config.neurons)) for begin in (0, config.neurons))
            own = {"gate": gate, "up": up, "down": down}
        else:
            experts: Any = layer.experts
            own = _halved(experts.up[number], experts.down[number], f"{where}.experts.{number}", rounded)
        matrices |= {f"experts.{number}.{name}": one for name, one in own.items()}
    if layer.shared is not None:
        matrices |= _halved(layer.shared.up, layer.shared.down, where, rounded)
    return Ffn("experts", config.activation, experts=routing), matrices


def _halved(up: torch.Tensor, down: torch.Tensor, where: str, rounded: Rounding) -> dict[str, Packed]:
    """An expert's matrices from its own, of which the first holds gate and up."""
    gate, up = _floats(up).chunk(2)
    return {name: pack(rounded(f"{where}.{name}", one)) for name, one in zip(GATED, (gate, up, _floats(down)), strict=True)}


def _planned(model: PreTrainedModel, at: int) -> Ffn:
    """What a layer's feed-forward part is, by the model's plan. One that silences nothing but exact zeros of silu is the dense one."""
    plan, own = plan_of(model), model.config.hidden_act
    if plan is None:
        return Ffn(activation=own)
    activation: Any = own if plan.activation == "same" else plan.activation
    threshold = plan.thresholds[at] if plan.thresholds else 0.0
    if not threshold and activation == "silu":
        return Ffn(activation=activation)
    return Ffn("gate-first" if plan.on == "gate" else "product", activation, threshold)


def _ffn(part: Any, told: Part, where: str, rounded: Rounding) -> tuple[Ffn, dict[str, Packed]]:
    """A feed-forward part and its matrices."""
    found = experts_of(part, where, rounded)
    if found is not None:
        return found
    options = told.options
    activation: Any = "relu2" if told.kind == "relu2" else options.get("activation")
    if told.kind not in ("dense", "gated", "relu2", "thresholded") or activation not in ACTIVATIONS or options.get("bias"):
        raise _lacks(str(told), where)
    if told.kind == "thresholded":
        ffn = Ffn("gate-first" if options["on"] == "gate" else "product", activation, options["threshold"])
    else:
        ffn = Ffn("gated" if told.kind == "gated" else "plain", activation)
    matrices = {}
    for name in ffn.names():
        weight = _floats(getattr(part, f"{name}_proj").weight)
        by_neuron = name in BY_NEURON.get(ffn.kind, ())
        turned = weight.T.contiguous() if by_neuron and name == "down" else weight
        matrices[name] = (pack_by_neuron if by_neuron else pack)(rounded(f"{where}.{name}", turned))
    return ffn, matrices


def _check(config: ModelConfig) -> None:
    """Raise BadModel, naming the first part that the kernel does not compute."""
    layers, head = config.layers(), next(iter(config.heads.values()), None)
    if not config.causal:
        raise _lacks("a model that sees the future", "causal")
    if config.embedding.kind != "tokens" or config.embedding.options.get("types"):
        raise _lacks(str(config.embedding), "embedding")
    if config.positions.kind != "rotary":
        raise _lacks(str(config.positions), "positions")
    if config.embedding_norm is not None:
        raise _lacks(str(config.embedding_norm), "embedding_norm")
    if head is None or head.kind != "lm" or head.options.get("bias") or head.options.get("transform"):
        raise _lacks(str(head or "no head"), "head", "the first head is what is said, a plain `lm`")
    if config.final_norm is None or config.final_norm.kind != "rms":
        raise _lacks(str(config.final_norm or "none"), "final_norm")
    for at, block in enumerate(layers):
        _check_block(block, layers[0], config.final_norm, f"block {at}")


def _check_block(block: BlockConfig, first: BlockConfig, norm: Part, where: str) -> None:
    if block.norm != norm or not block.norm_first:
        raise _lacks(f"{block.norm}, norm_first={block.norm_first}", f"{where}, norm", f"{norm} before each part, as after the last block")
    options = block.attention.options
    if block.attention.kind != "full" or options.get("bias") or options.get("out_bias"):
        raise _lacks(str(block.attention), f"{where}, attention", "full, without biases")
    if block.attention != first.attention:
        raise _lacks(str(block.attention), f"{where}, attention", f"heads as in block 0: {first.attention}")


def _lacks(part: str, where: str, expected: str | None = None) -> BadModel:
    return BadModel(
        f"the decoder's kernel does not compute {part}.",
        where=where,
        expected=expected or "rotary positions, full attention, rms norms, and feed-forward parts with silu, relu or relu2, without biases",
        do="swap the part: lissome swap MODEL --out DIR",
    )


def _floats(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float().cpu()
