"""Models of transformers taken over into parts, and given back: Llama, BERT and ViT with their heads, logits alike to rounding.

model = from_transformers("HuggingFaceTB/SmolLM2-135M")     # also a folder, a GGUF file, or a module in memory
hf = to_transformers(model.module)                          # in `as_transformers`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.core.errors import BadModel, closest
from lissome.core.model import Model
from lissome.nn.load import finished, load_model
from lissome.nn.models.assembly import ModularModel, architecture_of, assemble
from lissome.nn.models.config import ModelConfig, model_config
from lissome.nn.models.presets import bert, llama, vit
from lissome.nn.models.swap import carry

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
"""transformers' names -> ours."""
Names = tuple[tuple[str, str], ...]
_LLAMA: Names = (
    (r"embed_tokens\.", "trunk.embedding.table."),
    (r"layers\.(\d+)\.self_attn\.", r"trunk.blocks.\1.attention."),
    (r"layers\.(\d+)\.mlp\.", r"trunk.blocks.\1.ffn."),
    (r"layers\.(\d+)\.input_layernorm\.", r"trunk.blocks.\1.attention_norm."),
    (r"layers\.(\d+)\.post_attention_layernorm\.", r"trunk.blocks.\1.ffn_norm."),
    (r"norm\.", "trunk.final_norm."),
    (r"lm_head\.", "heads.lm.linear."),
    (r"score\.", "heads.{head}.linear."),
)
_BERT: Names = (
    (r"embeddings\.word_embeddings\.", "trunk.embedding.table."),
    (r"embeddings\.token_type_embeddings\.", "trunk.embedding.types."),
    (r"embeddings\.position_embeddings\.", "trunk.positions.table."),
    (r"embeddings\.LayerNorm\.", "trunk.embedding_norm."),
    (r"encoder\.layer\.(\d+)\.attention\.self\.query\.", r"trunk.blocks.\1.attention.q_proj."),
    (r"encoder\.layer\.(\d+)\.attention\.self\.key\.", r"trunk.blocks.\1.attention.k_proj."),
    (r"encoder\.layer\.(\d+)\.attention\.self\.value\.", r"trunk.blocks.\1.attention.v_proj."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"trunk.blocks.\1.attention.o_proj."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.", r"trunk.blocks.\1.attention_norm."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"trunk.blocks.\1.ffn.up_proj."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"trunk.blocks.\1.ffn.down_proj."),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.", r"trunk.blocks.\1.ffn_norm."),
    (r"pooler\.dense\.", "heads.{head}.dense."),
    (r"classifier\.", "heads.{head}.linear."),
    (r"cls\.predictions\.transform\.dense\.", "heads.lm.dense."),
    (r"cls\.predictions\.transform\.LayerNorm\.", "heads.lm.norm."),
    (r"cls\.predictions\.decoder\.", "heads.lm.linear."),
    (r"cls\.predictions\.bias", "heads.lm.linear.bias"),
)
_VIT: Names = (
    (r"embeddings\.cls_token", "trunk.embedding.whole"),
    (r"embeddings\.position_embeddings", "trunk.positions.table.weight"),
    (r"embeddings\.patch_embeddings\.projection\.", "trunk.embedding.projection."),
    (r"layers\.(\d+)\.attention\.", r"trunk.blocks.\1.attention."),
    (r"layers\.(\d+)\.layernorm_before\.", r"trunk.blocks.\1.attention_norm."),
    (r"layers\.(\d+)\.layernorm_after\.", r"trunk.blocks.\1.ffn_norm."),
    (r"layers\.(\d+)\.mlp\.fc1\.", r"trunk.blocks.\1.ffn.up_proj."),
    (r"layers\.(\d+)\.mlp\.fc2\.", r"trunk.blocks.\1.ffn.down_proj."),
    (r"layernorm\.", "trunk.final_norm."),
    (r"pooler\.dense\.", "heads.{head}.dense."),
    (r"classifier\.", "heads.{head}.linear."),
)
_VIT_BEFORE_5: Names = (
    (r"encoder\.layer\.(\d+)\.attention\.attention\.query\.", r"layers.\1.attention.q_proj."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.key\.", r"layers.\1.attention.k_proj."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.value\.", r"layers.\1.attention.v_proj."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"layers.\1.attention.o_proj."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"layers.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"layers.\1.mlp.fc2."),
    (r"encoder\.layer\.(\d+)\.", r"layers.\1."),
)
"""How transformers before 5 calls the weights of a ViT -> how it does since."""
_BODY = re.compile(r"^(model|bert|vit)\.")


def from_transformers(source: str | Path | Model | nn.Module) -> Model:
    """A model of parts with the weights of a transformers model: a Hugging Face folder or id, a GGUF file, a Model, or a module.

    A model of parts passes through. The tokenizer's folder is kept. Raises BadModel for an architecture that is not offered (named), settings that parts do
    not have, and weights that find no place.
    """
    if isinstance(source, str | Path):
        source = load_model(str(source))
    given = source if isinstance(source, Model) else None
    module: Any = given.module if given else source
    if isinstance(module, ModularModel):
        return given or finished(module, architecture_of(module), type(module).__name__)
    ref = given.ref if given else type(module).__name__
    config = config_of(module, ref)
    made = assemble(config)
    head = next(iter(config.heads), "")
    weights = {ours_of(name, module.config.model_type, head): _shaped(name, value) for name, value in module.state_dict().items()}
    carried = carry(made, {name: value for name, value in weights.items() if name is not None})
    if carried.new or carried.left:
        missing, lost = (", ".join(names[:3]) for names in (carried.new, carried.left))
        raise BadModel(f"its weights do not fit: {f'none for {missing}' if missing else f'no place for {lost}'}", where=ref)
    return finished(made, architecture_of(made), ref, given.directory if given else None)


def config_of(module: nn.Module, where: str = "") -> ModelConfig:
    """The config of parts that computes what a transformers module does. Raises BadModel for what is not offered, by name."""
    hf: Any = getattr(module, "config", None)
    kind = getattr(hf, "model_type", None) or type(module).__name__
    if kind not in SHAPES:
        raise BadModel(f'the architecture "{kind}" is not offered in parts.{closest(kind, list(SHAPES))}', where=where or None, expected=", ".join(SHAPES))
    if getattr(hf, "lissome_attention", None) is not None or getattr(module, "peft_config", None):
        raise BadModel("its attention was changed since it was built", where=where or None, do="take the original over, then swap its attention")
    return model_config(SHAPES[kind](hf, type(module).__name__, where), where or kind)


def ours_of(name: str, model_type: str, head: str) -> str | None:
    """What we call a weight of transformers'; None for one that the model does not use. head: the name of the head that is no language head."""
    plain = _BODY.sub("", name)
    if model_type == "vit":
        for pattern, ours in _VIT_BEFORE_5:
            plain = re.sub(f"^{pattern}", ours, plain)
    for pattern, ours in NAMES[model_type]:
        found = re.match(pattern, plain)
        if found:
            if "{head}" in ours and not head:
                return None  # a pooler that nothing reads
            return found.expand(ours.replace("{head}", head)) + plain[found.end() :]
    return name


def _llama(hf: Any, target: str, where: str) -> dict[str, Any]:
    """What `llama` makes of a transformers config, with its heads and biases."""
    _only(hf.hidden_act in ACTIVATIONS, f'the activation "{hf.hidden_act}"', where, list(ACTIVATIONS))
    _only(getattr(hf, "pretraining_tp", 1) in (None, 1), "pretraining_tp above 1", where)
    config = llama(
        hf.vocab_size,
        hf.hidden_size,
        hf.num_hidden_layers,
        hf.num_attention_heads,
        hf.num_key_value_heads,
        hf.intermediate_size,
        hf.max_position_embeddings,
        dim=getattr(hf, "head_dim", None),
        eps=hf.rms_norm_eps,
        tied=bool(hf.tie_word_embeddings),
    ).model_dump(mode="json")
    block = config["blocks"][0]
    block["attention"]["bias"], block["ffn"]["bias"] = hf.attention_bias, hf.mlp_bias
    block["ffn"]["activation"] = ACTIVATIONS[hf.hidden_act]
    config["positions"] = {"kind": "rotary", **_rotation(hf, where)}
    if not target.endswith("ForCausalLM"):
        config["heads"] = _heads(hf, target, where, {"pool": "last", "bias": False})
    return config


def _rotation(hf: Any, where: str) -> dict[str, Any]:
    """Options of rotary positions; transformers keeps them in `rope_parameters` since 5, in `rope_theta` and `rope_scaling` before."""
    rope: Mapping[str, Any] = getattr(hf, "rope_parameters", None) or getattr(hf, "rope_scaling", None) or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    base = float(rope.get("rope_theta") or getattr(hf, "rope_theta", None) or 10000.0)
    _only(float(rope.get("partial_rotary_factor") or 1.0) == 1.0, "rotation of a part of each head", where)
    if kind == "default":
        return {"base": base}
    if kind == "linear":
        return {"base": base, "scaling": "linear", "factor": rope["factor"]}
    _only(kind == "llama3", f'the rotary scaling "{kind}"', where, ["default", "linear", "llama3"])
    return {
        "base": base,
        "scaling": "llama3",
        "factor": rope["factor"],
        "low": rope["low_freq_factor"],
        "high": rope["high_freq_factor"],
        "original": rope.get("original_max_position_embeddings") or hf.max_position_embeddings,
    }


def _bert(hf: Any, target: str, where: str) -> dict[str, Any]:
    """What `bert` makes of a transformers config, with its heads."""
    _only(hf.hidden_act in ACTIVATIONS, f'the activation "{hf.hidden_act}"', where, list(ACTIVATIONS))
    positions = getattr(hf, "position_embedding_type", None) or "absolute"
    _only(positions == "absolute", f'positions of the type "{positions}"', where, ["absolute"])
    _only(not hf.is_decoder and not hf.add_cross_attention, "BERT as a decoder", where)
    masked = {"kind": "lm", "tied": bool(hf.tie_word_embeddings), "bias": True, "transform": ACTIVATIONS[hf.hidden_act], "eps": hf.layer_norm_eps}
    heads = {"lm": masked} if target.endswith("ForMaskedLM") else _heads(hf, target, where, {"pool": "first", "pooler": True})
    return bert(
        hf.vocab_size,
        hf.hidden_size,
        hf.num_hidden_layers,
        hf.num_attention_heads,
        hf.intermediate_size,
        hf.max_position_embeddings,
        types=hf.type_vocab_size,
        activation=ACTIVATIONS[hf.hidden_act],
        eps=hf.layer_norm_eps,
        dropout=hf.hidden_dropout_prob,
        answers=heads,
    ).model_dump(mode="json")


def _vit(hf: Any, target: str, where: str) -> dict[str, Any]:
    """What `vit` makes of a transformers config, with its heads."""
    _only(hf.hidden_act in ACTIVATIONS, f'the activation "{hf.hidden_act}"', where, list(ACTIVATIONS))
    _only(isinstance(hf.image_size, int) and isinstance(hf.patch_size, int), "images or patches that are not square", where)
    return vit(
        hf.image_size,
        hf.patch_size,
        hf.hidden_size,
        hf.num_hidden_layers,
        hf.num_attention_heads,
        hf.intermediate_size,
        channels=hf.num_channels,
        activation=ACTIVATIONS[hf.hidden_act],
        bias=hf.qkv_bias,
        eps=hf.layer_norm_eps,
        dropout=hf.hidden_dropout_prob,
        answers=_heads(hf, target, where, {"pool": "first"}),
    ).model_dump(mode="json")


def _heads(hf: Any, target: str, where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The head that a class of transformers has; none for a bare model."""
    if target.endswith("Model"):
        return {}
    if target.endswith("ForTokenClassification"):
        return {"token": {"kind": "token", "classes": hf.num_labels}}
    offered = target.endswith(("ForSequenceClassification", "ForImageClassification"))
    _only(offered, f"the class {target}", where, ["...Model", "ForCausalLM", "ForMaskedLM", "For(Sequence|Token|Image)Classification"])
    if hf.num_labels == 1 or getattr(hf, "problem_type", None) == "regression":
        return {"regression": {"kind": "regression", "outputs": hf.num_labels, **options}}
    return {"classification": {"kind": "classification", "classes": hf.num_labels, **options}}


def _only(holds: bool, what: str, where: str, offered: list[str] | None = None) -> None:
    if not holds:
        raise BadModel(f"{what} is not offered in parts", where=where or None, expected=", ".join(offered) if offered else None)


def _shaped(name: str, value: torch.Tensor) -> torch.Tensor:
    """ViT keeps its table of positions as a batch of one."""
    return value[0] if name.endswith("position_embeddings") else value


Shape = Callable[[Any, str, str], dict[str, Any]]
SHAPES: dict[str, Shape] = {"llama": _llama, "bert": _bert, "vit": _vit}
NAMES: dict[str, Names] = {"llama": _LLAMA, "bert": _BERT, "vit": _VIT}
