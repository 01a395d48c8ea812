"""A GGUF file into a decoder's folder, a few rows at a time: no more than one tensor's slice is in memory, however large the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lissome.core.cache import disk_errors
from lissome.kernels.decoder.packed import packed_bytes
from lissome.nn.decoder.folder import DESCRIPTION, FORMAT, TENSORS, TOKENIZER, About, Description, Matrix
from lissome.nn.decoder.gguf import Gguf
from lissome.nn.decoder.weights import GGUF_NAMES, GROUP, TURNED, Plan, bits_of, floats_of, gguf_plan, packed_slices, rotations
from lissome.nn.mapped import write_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer

POSITIONS = 1024
"""Rows of the rotations that are computed at a time."""


def pack_file(file: Gguf, folder: Path, tokenizer: Tokenizer, about: About) -> None:
    """Write the decoder in a GGUF file, codes as they are, into `folder`. Raises BadModel as `from_gguf` does."""
    plan = gguf_plan(file)
    floats, matrices = _floats(plan), _matrices(file, plan)
    described = {name: one for name, (_, one, _) in matrices.items()}
    plain: dict[str, Any] = {"heads": plan.heads, "kv_heads": plan.kv_heads, "dim": plan.dim, "epsilon": plan.epsilon, "scale": plan.dim**-0.5}
    told = Description(format=FORMAT, layers=plan.layers, tied="head" not in matrices, matrices=described, about=about, **plain)
    with disk_errors("the decoder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DESCRIPTION).write_text(told.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
        with (folder / TENSORS).open("wb") as out:
            sizes = {name: packed_bytes(one.rows, one.columns, one.bits, one.group) for name, one in sorted(described.items())}
            write_header(out, sizes, {name: shape for name, (_, shape) in sorted(floats.items())})
            for name in sorted(matrices):
                stored, _, heads = matrices[name]
                for data in packed_slices(file, stored, plan.dim if heads else 0):
                    out.write(data.data)
            for name in sorted(floats):
                _write_floats(out, file, plan, name, floats[name][0])


def _floats(plan: Plan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our name -> the file's (none for rotations), and the shape."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {"norm": ("output_norm.weight", (plan.hidden,))}
    found |= dict.fromkeys(("cosine", "sine"), ("", (plan.positions, plan.dim // 2)))
    for at in range(plan.layers):
        for name, stored in (("attention_norm", "attn_norm"), ("ffn_norm", "ffn_norm")):
            found[f"layers.{at}.{name}"] = (f"blk.{at}.{stored}.weight", (plan.hidden,))
    return found


def _matrices(file: Gguf, plan: Plan) -> dict[str, tuple[str, Matrix, bool]]:
    """Our name -> the file's, its description, and whether its rows are turned."""
    names = {"embedding": "token_embd.weight"} | ({"head": "output.weight"} if "output.weight" in file.entries else {})
    names |= {f"layers.{at}.{name}": f"blk.{at}.{stored}.weight" for at in range(plan.layers) for name, stored in GGUF_NAMES.items()}
    found = {}
    for name, stored in names.items():
        bits = bits_of(file, stored)
        rows, columns = file.entries[stored].shape
        described = Matrix(rows=rows, columns=columns, bits=bits, group=GROUP)
        found[name] = (stored, described, name.rpartition(".")[2] in TURNED)
    return found


def _write_floats(out: BinaryIO, file: Gguf, plan: Plan, name: str, stored: str) -> None:
    if stored:
        out.write(np.ascontiguousarray(floats_of(file, stored), "<f4").data)
        return
    for begin in range(0, plan.positions, POSITIONS):
        cosine, sine = rotations(plan.dim, min(begin + POSITIONS, plan.positions), plan.base, begin)
        out.write(np.ascontiguousarray(cosine if name == "cosine" else sine, "<f4").data)
