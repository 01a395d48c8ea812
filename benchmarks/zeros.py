"""Whether zeros in the weights make an engine faster: a stack of linear layers, dense and with zeros, interleaved, one thread.

    python benchmarks/zeros.py [--json] [--write docs/sparse.md] [--rounds 25]

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "rows": [{"zeros": str, "engine": str,
"latency_p50": ms, "speedup": {"value", "low", "high"}, "compressed": share}]}. speedup: times as fast as the same engine with dense weights, the median
over rounds side by side with its interval at 95 %; compressed: the weights' size after zlib, as a share of their plain size.
"""

from __future__ import annotations

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
from lissome.core.progress import Progress
from lissome.core.statistics import median_interval
from lissome.machine.identity import identify
from lissome.report.markdown import markdown_table
from publishing import Document, made_on, on, options, publish, spread

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


def run(rounds: int, progress: Progress) -> Document:
    """The whole benchmark as its JSON document."""
    torch.set_num_threads(1)
    x, calls, sizes = torch.randn(ROWS, 384), {}, {}
    for name, (pattern, share) in PATTERNS.items():
        module = zeroed(stack(), pattern, share)
        sizes[name] = compressed(module)
        with tempfile.TemporaryDirectory() as folder:
            calls |= {(name, engine): call for engine, call in ways(module, x, Path(folder)).items()}
        if "blocks" in name:
            calls[name, "torch BSR"] = blocks_in_torch(module, x)
    times = timed(calls, rounds, progress)
    rows = []
    for (name, engine), taken in times.items():
        ratios = [dense / own for dense, own in zip(times["dense", engine.split()[0]], taken, strict=True)]
        value, low, high = median_interval(ratios)
        speedup = {"value": value, "low": low, "high": high}
        rows.append({"zeros": name, "engine": engine, "latency_p50": statistics.median(taken), "speedup": speedup, "compressed": sizes[name]})
    return on(identify()) | {"rows": rows}


def timed(calls: dict[tuple[str, str], Callable[[], Any]], rounds: int, progress: Progress) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of every call, round by round, in rotating order; a first round is not counted."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    order = list(calls)
    progress.stage("timing", rounds)
    with torch.no_grad():
        for at in range(-1, rounds):
            for key in order:
                begun = time.perf_counter()
                calls[key]()
                if at >= 0:
                    times[key].append(1e3 * (time.perf_counter() - begun))
            order.append(order.pop(0))
            progress.step()
    return times


def table(document: Document) -> str:
    """A row for each pattern, a column for each engine."""
    engines = list(dict.fromkeys(row["engine"] for row in document["rows"]))
    found = {(row["zeros"], row["engine"]): row for row in document["rows"]}
    rows = []
    for name in PATTERNS:
        cells = [spread(found[name, engine]["speedup"]) if (name, engine) in found else "" for engine in engines]
        rows.append([name, *cells, f"{100 * found[name, engines[0]]['compressed']:.0f} %"])
    return f"{markdown_table(rows, ['zeros', *engines, 'size after zlib'])}\n\n{made_on(document)}"


def main() -> None:
    """Run, print, and write the table into the docs when asked."""
    parser = options(__doc__, "zeros")
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    publish(given, lambda progress: run(given.rounds, progress), table)


if __name__ == "__main__":
    main()
