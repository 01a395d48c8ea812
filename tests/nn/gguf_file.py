"""A GGUF file as small as one can be, written by the gguf package: a Llama of one layer and a tokenizer of single letters."""

from __future__ import annotations

from pathlib import Path

import numpy as np

DIM, HEADS, VOCABULARY = 32, 2, 60
WORDS = ["<unk>", "<s>", "</s>", "AB", *[chr(c) for c in range(ord("!"), ord("!") + VOCABULARY - 4)]]


def write_gguf(path: Path, architecture: str = "llama") -> dict[str, np.ndarray]:
    """Write the file; return its tensors by GGUF's names."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(DIM)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(DIM // HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3, *[1] * (VOCABULARY - 3)])
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (VOCABULARY, DIM),
        "output_norm.weight": (DIM,),
        **{f"blk.0.{name}.weight": (DIM, DIM) for name in ("attn_q", "attn_k", "attn_v", "attn_output")},
        **{f"blk.0.{name}.weight": (DIM,) for name in ("attn_norm", "ffn_norm")},
        **{f"blk.0.{name}.weight": (64, DIM) for name in ("ffn_gate", "ffn_up")},
        "blk.0.ffn_down.weight": (DIM, 64),
    }
    tensors = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
