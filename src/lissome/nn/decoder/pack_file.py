"""A GGUF file into a decoder's folder, a few rows at a time: no more than one tensor's slice is in memory, however large the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch

from lissome.core.cache import disk_errors
from lissome.core.errors import BadModel
from lissome.kernels.decoder.packed import Bits, pack, packed_bytes
from lissome.nn.decoder.folder import DESCRIPTION, FORMAT, TENSORS, TOKENIZER, About, Description, Matrix
from lissome.nn.decoder.gguf import Gguf, slice_rows
from lissome.nn.decoder.weights import GGUF_NAMES, Plan, gguf_plan, halves_first, rotations
from lissome.nn.mapped import write_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SLICE = 1 << 18
"""Weights that are packed at a time: packing takes some 30 bytes for each."""
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
            write_header(out, {name: shape for name, (_, shape) in sorted(floats.items())}, sizes)
            for name in sorted(floats):
                _write_floats(out, file, plan, name, floats[name][0])
            for name in sorted(matrices):
                stored, _, heads = matrices[name]
                for data in _packed(file, stored, plan.dim if heads else 0):
                    out.write(data.numpy().tobytes())


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
        entry = file.entries[stored]
        if len(entry.shape) != 2:
            raise BadModel(f'the tensor "{stored}" has the shape {list(entry.shape)}', where=str(file.path), expected="rows and columns")
        bits: Bits = 4 if entry.kind in ("Q4_0", "Q4_1") else 8 if entry.kind == "Q8_0" else 32
        described = Matrix(rows=entry.shape[0], columns=entry.shape[1], bits=bits, group=32)
        found[name] = (stored, described, name.rpartition(".")[2] in ("q", "k"))
    return found


def _write_floats(out: BinaryIO, file: Gguf, plan: Plan, name: str, stored: str) -> None:
    if stored:
        tensor = file.tensor(stored)
        dense = tensor if isinstance(tensor, torch.Tensor) else tensor.dense()
        out.write(dense.contiguous().numpy().astype("<f4").tobytes())
        file.forget(stored)
        return
    for begin in range(0, plan.positions, POSITIONS):
        cosine, sine = rotations(plan.dim, min(begin + POSITIONS, plan.positions), plan.base, begin)
        out.write(np.ascontiguousarray((cosine if name == "cosine" else sine).numpy(), "<f4").tobytes())


def _packed(file: Gguf, stored: str, dim: int) -> Iterator[torch.Tensor]:
    """Bytes of a packed matrix, some tiles of rows at a time. dim: of the heads whose rows are turned, 0 where none are."""
    rows, columns = file.entries[stored].shape
    whole = dim or 16  # tiles and heads are not cut
    step = max(1, SLICE // columns // whole) * whole
    for begin in range(0, rows, step):
        part = slice_rows(file, stored, begin, min(begin + step, rows))
        count = min(begin + step, rows) - begin
        yield pack(halves_first(part, count // dim) if dim else part).data
        file.forget(stored)
