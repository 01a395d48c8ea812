"""Whether zeros in the weights make an engine faster: a stack of linear layers, dense and with zeros, interleaved, one thread.

python benchmarks/zeros.py
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.compress.sparse import SPARSE, parse_pattern
from lissome.compress.sparse.masks import masks
from lissome.report.markdown import markdown_table

PATTERNS = {"dense": ("unstructured", 0.0), "80 % anywhere": ("unstructured", 0.8), "2:4": ("2:4", 0.5), "80 % in blocks of 32x32": ("32x32", 0.8)}
ROWS = 128


def stack() -> nn.Module:
    """Three feed-forward blocks of MiniLM's size."""
    torch.manual_seed(0)
    return nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(384, 1536), nn.ReLU(), nn.Linear(1536, 384))]).eval()


def zeroed(module: nn.Module, pattern: str, share: float) -> nn.Module:
    """A copy with the smallest weights of each layer set to zero."""
    made = copy.deepcopy(module)
    weights = {name: layer.weight for name, layer in made.named_modules() if isinstance(layer, SPARSE)}
    kept = masks({name: weight.detach().abs() for name, weight in weights.items()}, parse_pattern(pattern), share)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(kept[name])
    return made


def ways(module: nn.Module, x: torch.Tensor, folder: Path) -> dict[str, Callable[[], Any]]:
    """One call of each engine on `x`."""
    import onnxruntime
    import openvino

    path = folder / "stack.onnx"
    torch.onnx.export(module, (x,), str(path), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    name = session.get_inputs()[0].name
    return {"torch": lambda: module(x), "onnxruntime": lambda: session.run(None, {name: x.numpy()}), "openvino": lambda: compiled(x.numpy())}


def blocks_in_torch(module: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """torch's block-sparse matrices (BSR), the one CPU path that skips blocks of zeros."""
    layers = [(layer.weight.detach().to_sparse_bsr((32, 32)), layer.bias) if isinstance(layer, nn.Linear) else None for layer in module.children()]

    def run() -> torch.Tensor:
        y = x
        for layer in layers:
            y = torch.relu(y) if layer is None else nn.functional.linear(y, *layer)
        return y

    return run


def compressed(module: nn.Module) -> float:
    """Size of the weights after zlib, as a share of their plain size."""
    raw = b"".join(parameter.detach().numpy().tobytes() for parameter in module.parameters())
    return len(zlib.compress(raw, 6)) / len(raw)


def main() -> None:
    """Time, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    torch.set_num_threads(1)
    x, calls, sizes = torch.randn(ROWS, 384), {}, {}
    for name, (pattern, share) in PATTERNS.items():
        module = zeroed(stack(), pattern, share)
        sizes[name] = compressed(module)
        with tempfile.TemporaryDirectory() as folder:
            calls |= {(name, engine): call for engine, call in ways(module, x, Path(folder)).items()}
        if "blocks" in name:
            calls[name, "torch BSR"] = blocks_in_torch(module, x)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    with torch.no_grad():
        for _ in range(given.rounds):
            for key, call in calls.items():
                begun = time.perf_counter()
                call()
                times[key].append(1e3 * (time.perf_counter() - begun))
    rows = []
    for (name, engine), taken in times.items():
        dense = times["dense", engine.split()[0]]
        rows.append([name, engine, f"{min(taken):.2f}", f"{min(dense) / min(taken):.2f}", f"{statistics.median(dense) / statistics.median(taken):.2f}"])
    print(markdown_table(rows, ["zeros", "engine", "best, ms", "times dense (best)", "times dense (median)"]))
    print(markdown_table([[name, f"{100 * size:.0f} %"] for name, size in sizes.items()], ["zeros", "size after zlib"]))


if __name__ == "__main__":
    main()
