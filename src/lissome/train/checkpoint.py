"""Checkpoints: a tree of plain values and tensors as JSON plus safetensors, never a pickle, written atomically.

A checkpoint is a folder `step-00000120/` with `tree.json` and `tensors.safetensors`. It appears by one rename, so a killed
process leaves either the whole checkpoint or none. Two are kept: should the newest be damaged, the one before it is used.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lissome.core.cache import disk_errors

KEEP = 2


def pack(tree: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split a tree of dicts, lists, tuples, scalars, strings and tensors into a JSON value and its tensors.

    Dict keys may be anything hashable and JSON-able, as in torch's optimizer states. `unpack` gives back the same tree, bit for bit.
    Raises TypeError for a leaf that is neither.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen: dict[tuple[Any, ...], str] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, torch.Tensor):
            return {"tensor": _hold(node, path, tensors, seen)}
        if isinstance(node, dict):
            return {"dict": [[key, walk(value, f"{path}.{key}")] for key, value in node.items()]}
        if isinstance(node, tuple | list):
            return {"tuple" if isinstance(node, tuple) else "list": [walk(value, f"{path}.{i}") for i, value in enumerate(node)]}
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise TypeError(f"a checkpoint cannot hold {type(node).__name__} (at {path.lstrip('.')}); give plain values and tensors")

    return walk(tree, ""), tensors


def _hold(tensor: torch.Tensor, path: str, tensors: dict[str, torch.Tensor], seen: dict[tuple[Any, ...], str]) -> str:
    """Note a copy of `tensor` under `path`; tensors that are one and the same (tied weights) are kept once."""
    name = path.lstrip(".") or "tensor"
    identity = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
    if tensor.numel() and identity in seen:
        return seen[identity]
    seen[identity] = name
    tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return name


def unpack(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree that `pack` took apart."""
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: unpack(inner, tensors) for key, inner in value}
    return (tuple if kind == "tuple" else list)(unpack(inner, tensors) for inner in value)


def save(folder: Path, step: int, tree: Any) -> Path:
    """Write `tree` as the checkpoint of `step` below `folder`, then drop all but the newest two. Raises EnvironmentLacks when the disk is full."""
    final = folder / f"step-{step:08d}"
    with disk_errors("a checkpoint", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".writing-*"):
            shutil.rmtree(stale, ignore_errors=True)
        working = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
        try:
            structure, tensors = pack(tree)
            save_file(tensors, working / "tensors.safetensors")
            (working / "tree.json").write_text(json.dumps(structure), encoding="utf-8")
            for file in working.iterdir():
                _flush(file)
            if final.exists():  # the same step again, as at the end of a resumed run
                shutil.rmtree(final)
            working.rename(final)
        finally:
            shutil.rmtree(working, ignore_errors=True)
    for old in saved(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _flush(file: Path) -> None:
    """Make the bytes reach the disk before the rename does, so that a power cut cannot leave an empty checkpoint."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def saved(folder: Path) -> list[Path]:
    """The checkpoints below `folder`, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def latest(folder: Path) -> tuple[Path, Any] | None:
    """The newest checkpoint that can be read and its tree; None where there is none."""
    for path in reversed(saved(folder)):
        try:
            structure = json.loads((path / "tree.json").read_text(encoding="utf-8"))
            return path, unpack(structure, load_file(path / "tensors.safetensors"))
        except (OSError, ValueError, KeyError, SafetensorError):
            continue  # damaged from outside: the one before it is as good, only older
    return None


def random_state() -> dict[str, Any]:
    """The state of every global random generator: python, numpy, torch, and the accelerator's where there is one."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # user code may draw from the global generator
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(kind), [int(k) for k in keys], int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(*parts: int) -> None:
    """Seed every global generator with a pure function of `parts`, such as (seed, epoch)."""
    words = np.random.SeedSequence(parts).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))
