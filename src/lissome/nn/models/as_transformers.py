"""Models of parts given back to transformers, where one of its architectures computes the same: what reads Hugging Face folders reads them then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lissome.core.errors import BadModel
from lissome.nn.models.assembly import ModularModel, made_of_parts
from lissome.nn.models.config import BlockConfig, ModelConfig, grouped
from lissome.nn.models.hugging_face import ACTIVATIONS, config_of, ours_of
from lissome.nn.models.parts import Part, schema

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_THEIRS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}
assert set(_THEIRS) == set(ACTIVATIONS.values())
_TARGETS = {
    "llama": {None: "LlamaModel", "lm": "LlamaForCausalLM", "classification": "LlamaForSequenceClassification", "token": "LlamaForTokenClassification"},
    "bert": {None: "BertModel", "lm": "BertForMaskedLM", "classification": "BertForSequenceClassification", "token": "BertForTokenClassification"},
    "vit": {None: "ViTModel", "classification": "ViTForImageClassification"},
}
_FREE = {"seed", "spread", "dropout"}
"""What does not change what a model computes; heads are compared without their names."""


def to_transformers(model: nn.Module, pad: int | None = None) -> PreTrainedModel:
    """A copy as a transformers model: Llama, BERT or ViT, whichever the parts are. Sparse patterns without learned scorers go along.

    pad: the padding token's id, which Llama's classifier must know to find the last token of each row.
    Raises BadModel where none of them computes the same, with what differs.
    """
    import transformers

    from lissome.nn.attention.in_transformers import use

    ours = made_of_parts(model, "to_transformers")
    config, patterns = _dense(ours.config)
    kind = "vit" if config.embedding.kind == "patches" else "llama" if config.causal else "bert"
    if len(config.heads) > 1:
        raise BadModel(f"it has {len(config.heads)} heads, and a transformers model has one", do='remove the others: swap(model, "head", None, name=...)')
    head = next(iter(config.heads.values()), None)
    target = _TARGETS[kind].get("classification" if head and head.kind == "regression" else head.kind if head else None)
    if target is None:
        assert head is not None
        raise BadModel(f"a {kind} of transformers has no head of the kind {head.kind}", expected=", ".join(str(one) for one in _TARGETS[kind] if one))
    hf = _hf_config(kind, config, head)
    if pad is not None:
        hf.pad_token_id = pad
    made = getattr(transformers, target)(hf)
    _check_same(config, config_of(made))
    _fill(made, ours, kind)
    if any(patterns):
        use(made, patterns)
    found: PreTrainedModel = made.eval()
    return found


def _dense(config: ModelConfig) -> tuple[ModelConfig, list[str | None]]:
    """The config with full attention in the place of sparse, and the pattern of each block."""
    patterns = [block.attention.options.get("pattern") if block.attention.kind == "sparse" else None for block in config.layers()]

    def plain(block: BlockConfig) -> BlockConfig:
        options = {name: value for name, value in block.attention.options.items() if name in schema("attention", "full").model_fields}
        return block.model_copy(update={"attention": Part(kind="full", **options)})

    blocks = [plain(block) if pattern else block for block, pattern in zip(config.layers(), patterns, strict=True)]
    return config.model_copy(update={"blocks": grouped(blocks)}), patterns


def _hf_config(kind: str, config: ModelConfig, head: Part | None) -> Any:
    """A transformers config of the sizes of the first block; whether it fits all is seen afterwards."""
    import transformers

    library: Any = transformers  # its configs take what they are given by name
    block = config.layers()[0]
    attention, ffn, norm = block.attention.options, block.ffn.options, block.norm.options
    shared: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": len(config.layers()),
        "num_attention_heads": attention.get("heads"),
        "intermediate_size": ffn.get("inner"),
        "hidden_act": _THEIRS.get(str(ffn.get("activation")), "gelu"),
    }
    if head and head.kind in ("classification", "token", "regression"):
        shared["num_labels"] = head.options.get("classes") or head.options.get("outputs")
        shared |= {"problem_type": "regression"} if head.kind == "regression" else {}
    tied = bool(head and head.kind == "lm" and head.options["tied"])
    if kind == "vit":
        sizes = config.embedding.options
        images = {"image_size": sizes["image"], "patch_size": sizes["patch"], "num_channels": sizes["channels"]}
        drops = {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": 0.0}
        return library.ViTConfig(**shared, **images, **drops, qkv_bias=attention.get("bias"), layer_norm_eps=norm.get("eps"))
    shared |= {"vocab_size": config.embedding.options.get("vocabulary"), "max_position_embeddings": config.length, "tie_word_embeddings": tied}
    if kind == "bert":
        types = config.embedding.options.get("types") or 1
        drops = {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": 0.0}
        return library.BertConfig(**shared, **drops, type_vocab_size=types, layer_norm_eps=norm.get("eps"))
    sizes = {"num_key_value_heads": attention.get("kv_heads") or attention.get("heads"), "attention_bias": attention.get("bias"), "mlp_bias": ffn.get("bias")}
    sizes |= {"head_dim": attention["dim"]} if attention.get("dim") else {}
    return library.LlamaConfig(**shared, **sizes, **_rope(config.positions.options), rms_norm_eps=norm.get("eps"), pad_token_id=None)


def _rope(rotary: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions as this transformers wants them."""
    import transformers

    kind = "default" if rotary.get("scaling", "none") == "none" else rotary["scaling"]
    names = {"linear": ("factor",), "llama3": ("factor", "low", "high", "original")}.get(kind, ())
    theirs = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor", "original": "original_max_position_embeddings"}
    scaling = {"rope_type": kind, **{theirs[name]: rotary[name] for name in names}}
    base = rotary.get("base", 10000.0)
    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": {**scaling, "rope_theta": base}}
    return {"rope_theta": base, **({"rope_scaling": scaling} if names else {})}


def _check_same(config: ModelConfig, theirs: ModelConfig) -> None:
    """Raise unless both compute the same, naming the first thing that differs."""
    for name, ours in _meaning(config).items():
        other = _meaning(theirs)[name]
        if ours != other:
            raise BadModel(f"no architecture of transformers computes this: its {name} is {ours}", expected=str(other), do=f"swap the {name} first")


def _meaning(config: ModelConfig) -> dict[str, str]:
    """What a model computes, in words that can be compared: options that stand for their default are written out."""
    told = {name: str(getattr(config, name)) for name in ModelConfig.model_fields if name not in _FREE | {"blocks", "heads"}}
    for at, block in enumerate(config.layers()):
        own = block.attention.options
        if "heads" in own:
            own["kv_heads"] = own.get("kv_heads") or own["heads"]
            own["dim"] = own.get("dim") or config.width // own["heads"]
            own["out_bias"] = own.get("bias") if own.get("out_bias") is None else own["out_bias"]
        told[f"attention of block {at}"] = str(Part(kind=block.attention.kind, **own))
        told |= {f"ffn of block {at}": str(block.ffn), f"norm of block {at}": f"{block.norm}, norm_first={block.norm_first}"}
    return told | {"head": ", ".join(map(str, config.heads.values())) or "none"}


def _fill(made: Any, ours: ModularModel, kind: str) -> None:
    """Our weights under their names."""
    state, head = ours.state_dict(), next(iter(ours.heads), "")
    language = bool(head) and ours.config.heads[head].kind == "lm"
    with torch.no_grad():
        for name, place in made.state_dict().items():
            own = ours_of(name, kind, head)
            if own is None:
                continue  # a pooler that nothing reads
            value = state[own.replace("heads.lm.", f"heads.{head}.", 1) if language else own]
            place.copy_(value.view(place.shape))
