"""A small decoder, as a transformers model and as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lissome.kernels.decoder.packed import Codes
from lissome.nn.decoder.gguf_write import write_gguf
from lissome.nn.decoder.weights import GGUF_NAMES, LLAMA_NAMES

WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def llama(layers: int = 2, seed: int = 0, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300}
    given = sizes | {"num_hidden_layers": layers, "max_position_embeddings": 256, "tie_word_embeddings": True} | changes
    model = LlamaForCausalLM(LlamaConfig(**given)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight * 4 if weight.ndim > 1 else 1 + 0.2 * torch.randn_like(weight))
    return model


def coded(weight: torch.Tensor, bits: int = 4) -> Codes:
    """Weights in codes, with an offset: Q4_1, or Q8_0."""
    groups = weight.detach().unflatten(1, (-1, 32))
    if bits == 8:
        scale = (groups.abs().amax(-1) / 127).half()
        codes = (groups / scale.float()[..., None]).round().clamp(-127, 127).to(torch.int8).flatten(1)
        return Codes(codes, scale, torch.zeros_like(scale))
    low, high = groups.amin(-1), groups.amax(-1)
    scale, offset = ((high - low) / 15).half(), low.half()
    codes = ((groups - offset.float()[..., None]) / scale.float()[..., None]).round().clamp(0, 15).to(torch.uint8).flatten(1)
    return Codes(codes, scale, offset)


def neighbours_first(weight: Any, heads: int) -> Any:
    """Rows of queries or keys as llama.cpp's converter lays them: neighbours are rotated."""
    return np.asarray(weight).reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def as_gguf(model: Any, path: Path, **metadata: Any) -> Path:
    """The model with its matrices in four bits and its embedding in eight; its own weights are set to what the codes stand for."""
    config, tensors = model.config, {}

    def kept(weight: torch.Tensor, bits: int = 4) -> Codes:
        codes = coded(weight, bits)
        weight.data.copy_(torch.from_numpy(codes.dense()))
        return codes

    tensors["token_embd.weight"] = kept(model.model.embed_tokens.weight, 8)
    tensors["output_norm.weight"] = model.model.norm.weight.detach()
    for at, block in enumerate(model.model.layers):
        tensors[f"blk.{at}.attn_norm.weight"] = block.input_layernorm.weight.detach()
        tensors[f"blk.{at}.ffn_norm.weight"] = block.post_attention_layernorm.weight.detach()
        for name, stored in GGUF_NAMES.items():
            codes = kept(block.get_submodule(LLAMA_NAMES[name]).weight)
            heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(name)
            if heads:
                codes = Codes(*(neighbours_first(one, heads) for one in (codes.codes, codes.scale, codes.offset)))
            tensors[f"blk.{at}.{stored}.weight"] = codes
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's letters for bytes: these are themselves, the others begin at 256
    letters = [*WORDS, *map(chr, shown), *(chr(256 + i) for i in range(256 - len(shown)))]
    about = {
        "general.architecture": "llama",
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.freq_base": float(model.model.rotary_emb.config.rope_parameters["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": letters + [f"{a}{b}" for a, b in (("t", "h"), ("th", "e"), ("a", "n"))],
        "tokenizer.ggml.token_type": [3] * len(WORDS) + [1] * 259,
        "tokenizer.ggml.merges": ["t h", "th e", "a n"],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>",
    }
    write_gguf(path, about | metadata, tensors)
    return path
