"""A decoder as a GGUF file that llama.cpp runs: weights in groups of 32 exactly as they are packed, the tokenizer and the template inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lissome.core.errors import BadInput
from lissome.kernels.decoder.arrays import Array
from lissome.kernels.decoder.ffn import GATED_SILU
from lissome.kernels.decoder.native import Weights
from lissome.kernels.decoder.packed import Codes, Packed, unpack
from lissome.nn.decoder.checkpoint import Shape
from lissome.nn.decoder.folder import About
from lissome.nn.decoder.gguf import BLOCK
from lissome.nn.decoder.gguf_write import write_gguf
from lissome.nn.decoder.tokenizer import CONTROL, UNUSED, USER
from lissome.nn.decoder.weights import GGUF_NAMES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, FILE_TYPE, QUANTIZATION_VERSION = 1, 3, 2
"""Kind of a common token; llama.cpp's number for "mostly Q4_1"; version of its block formats."""


def save_gguf(path: Path, weights: Weights, shape: Shape, tokenizer: Tokenizer, about: About, name: str = "") -> None:
    """Write the file. Raises BadInput for groups other than 32 and for tokenizers that `tokenizer_of` would not read again."""
    check_groups(weights)
    tensors: dict[str, Array | Codes] = {"token_embd.weight": unpack(weights.embedding), "output_norm.weight": weights.norm}
    if weights.head is not weights.embedding:
        tensors["output.weight"] = unpack(weights.head)
    turned = {"q": shape.heads, "k": shape.kv_heads}
    for at, layer in enumerate(weights.layers):
        tensors |= {f"blk.{at}.attn_norm.weight": layer.attention_norm, f"blk.{at}.ffn_norm.weight": layer.ffn_norm}
        for inner, stored in GGUF_NAMES.items():
            matrix = unpack(layer.matrices[inner])
            tensors[f"blk.{at}.{stored}.weight"] = neighbours_first(matrix, turned[inner]) if inner in turned else matrix
    write_gguf(path, _metadata(shape, name) | tokenizer_metadata(tokenizer, about, shape.vocabulary), tensors)


def check_groups(weights: Weights) -> None:
    """Raise BadInput unless every matrix in codes is in groups of 32, the only ones that GGUF's blocks have, and layers are Llama's."""
    kind = next((layer.ffn for layer in weights.layers if layer.ffn != GATED_SILU), None)
    if kind is not None:
        raise BadInput(f"GGUF's llama has no {kind.kind} feed-forward parts with {kind.activation}.", expected="gated ones with silu", do="leave --gguf out")
    every: list[Packed] = [weights.embedding, weights.head, *(one for layer in weights.layers for one in layer.matrices.values())]
    other = next((one.group for one in every if one.bits != 32 and one.group != BLOCK), None)
    if other is not None:
        raise BadInput(f"GGUF has no place for groups of {other}.", expected=f"groups of {BLOCK} (Q4_0, Q4_1, Q8_0)", do=f"take --group {BLOCK}")


def neighbours_first(weights: Array | Codes, heads: int) -> Array | Codes:
    """Rows of queries or keys in GGUF's order, in which neighbours are rotated: the inverse of `halves_first`."""
    if isinstance(weights, Codes):
        return Codes(*(_turned(one, heads) for one in (weights.codes, weights.scale, weights.offset)))
    return _turned(weights, heads)


def _turned(rows: Array, heads: int) -> Array:
    return np.ascontiguousarray(rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2)).reshape(rows.shape)


def _metadata(shape: Shape, name: str) -> dict[str, Any]:
    about: dict[str, Any] = {"general.architecture": "llama", "general.type": "model"} | ({"general.name": name} if name else {})
    sizes = {
        "block_count": shape.layers,
        "context_length": shape.positions,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.ffn,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.dim,
        "attention.value_length": shape.dim,
        "attention.layer_norm_rms_epsilon": shape.epsilon,
        "rope.freq_base": shape.base,
        "rope.dimension_count": shape.dim,
        "vocab_size": shape.vocabulary,
    }
    numbers = {"general.file_type": FILE_TYPE, "general.quantization_version": QUANTIZATION_VERSION}
    return about | {f"llama.{key}": value for key, value in sizes.items()} | numbers


def tokenizer_metadata(tokenizer: Tokenizer, about: About, rows: int = 0) -> dict[str, Any]:
    """A byte-level BPE tokenizer as llama.cpp has it. Raises BadInput for another kind (named).

    rows: of the embedding; llama.cpp takes no model with more of them than tokens, so those that have none get a name that no text spells.
    """
    told = json.loads(tokenizer.to_str())
    model, added = told["model"], {one["id"]: one for one in told.get("added_tokens") or []}
    split = _split(told.get("pre_tokenizer"))
    if model.get("type") != "BPE" or split is None or told.get("normalizer"):
        cut = (told.get("pre_tokenizer") or {}).get("type")
        raise BadInput(
            f"a {model.get('type')} tokenizer that cuts text by {cut} cannot be written as GGUF.",
            expected="byte-level BPE, with or without digits cut apart",
            do="leave --gguf out: the folder keeps any tokenizer",
        )
    tokens = {at: token for token, at in tokenizer.get_vocab(with_added_tokens=True).items()}
    size = max(tokens) + 1
    missing = next((at for at in range(size) if at not in tokens), None)
    if missing is not None:
        raise BadInput(f"the tokenizer has no token {missing}, but {size - 1}", expected="tokens without gaps, as GGUF lists them")
    kinds = [NORMAL if at not in added else CONTROL if added[at]["special"] else USER for at in range(size)]
    more = range(size, rows)
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": [tokens[at] for at in range(size)] + [f"[PAD{at}]" for at in more],
        "tokenizer.ggml.token_type": kinds + [UNUSED] * len(more),
        "tokenizer.ggml.add_bos_token": about.begin_token is not None,
        "tokenizer.ggml.add_space_prefix": False,
    }
    if merges:
        found["tokenizer.ggml.merges"] = merges
    if about.begin_token is not None:
        found["tokenizer.ggml.bos_token_id"] = about.begin_token
    if about.end_tokens:
        found["tokenizer.ggml.eos_token_id"] = about.end_tokens[0]
        if len(about.end_tokens) > 1:
            found["tokenizer.ggml.eot_token_id"] = about.end_tokens[1]
    if about.chat_template:
        found["tokenizer.chat_template"] = about.chat_template
    return found


def _split(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """llama.cpp's name for how text is cut, of those that `tokenizer_of` reads; None for others."""
    steps = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {}]
    kinds = [one.get("type") for one in steps]
    plain = steps[-1].get("type") == "ByteLevel" and steps[-1].get("use_regex", True) and not steps[-1].get("add_prefix_space", False)
    if kinds == ["ByteLevel"] and plain:
        return "gpt-2"
    return "smollm" if kinds == ["Digits", "ByteLevel"] and plain and steps[0].get("individual_digits") else None
