"""Reading and writing tokens with a small language model: lissome, llama.cpp and transformers in one interleaved run, against the wall that memory sets.

    python benchmarks/decode.py [--json] [--write docs/decoding.md] [--model FILE.gguf] [--llama PYTHON] [--threads N] [--rounds 7] [--parts ...]

The model is a GGUF file (SmolLM2-135M in Q4_1 unless another is given); lissome reads the folder that `pack` makes of it, transformers its weights dequantised.
Every way is a process of its own; a round asks each once, in rotating order: read 1,024 tokens, write 32 after them; read 64, write 32 after them; read 64 into
each of eight sequences, write 16 in all of them at once. Figures are medians over rounds with intervals at 95 %, ratios are taken round by round against
llama.cpp, and batch_gain is one way's batch over its own single sequence. The wall is the bandwidth of reading memory, measured in every round by summing
floats that no cache holds, over the bytes that a token must read: matrices, and the keys and values before it. llama.cpp runs where --llama or LISSOME_LLAMA
names an interpreter with llama-cpp-python; else its row says "not installed". Part "perplexity" holds the exact same texts (this project's own docs) against
the dequantised weights in transformers, for inputs rounded as lissome does by itself and to 8, 16 and 32 bits. Needs about 4 GB of memory and ten minutes.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "threads": int, "bandwidth": figure (GB/s),
"rows": [{"name": str, "trouble": str | null, "load_s": float, "memory_mb": float, "memory_ratio": float | null, "prefill_1024", "decode_64", "decode_1024",
"batch_8": figure (tokens/s), "batch_gain": figure, and "prefill_1024_ratio", "decode_64_ratio", "decode_1024_ratio", "batch_8_ratio": figure | null}],
"roofline": [{"name": "decode_64" | "decode_1024", "mb": float, "wall": figure, "share": figure}], "perplexity": [{"name": str, "value": float,
"change_pct": figure}]} with figure = {"value", "low", "high", "unit", "n"}; share: lissome's tokens/s over the wall, round by round.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lissome.core.cache import Cache, file_sha256
from lissome.core.progress import Progress
from lissome.core.statistics import median_interval
from lissome.data.sources import fetch
from lissome.engines.decoding.engine import Batch, open_engine, pack_gguf
from lissome.kernels.decoder.native import Inputs, Weights
from lissome.machine.identity import identify
from lissome.nn.decoder.folder import LAYOUT
from lissome.nn.gguf import converted
from lissome.report.markdown import markdown_table
from publishing import Document, made_on, on, options, publish, spread

LONG, SHORT, SLOTS, CAPACITY = 1024, 64, 8, 1152
WRITTEN, WRITTEN_EACH = 32, 16
FIGURES = ("prefill_1024", "decode_64", "decode_1024", "batch_8")
WAYS = ("lissome", "lissome-8", "lissome-16", "lissome-32", "llama.cpp", "transformers-fp32", "transformers-bf16")
INPUTS: Mapping[Inputs, str] = {
    32: "lissome, inputs of 32 bits",
    16: "lissome, inputs of 16 bits",
    "mixed": "lissome",
    8: "lissome, inputs of 8 bits",
}
NAMES = {f"lissome-{bits}": name for bits, name in INPUTS.items() if bits != "mixed"}
PARTS = ("speed", "perplexity")


class Way:
    """A process that runs one way."""

    def __init__(self, name: str, python: str, model: Path, threads: int) -> None:
        command = [python, str(Path(__file__).with_name("decode_ways.py")), name, str(model), *map(str, (threads, SLOTS, CAPACITY))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        self.load = self._heard()["load"]

    def ask(self, **what: Any) -> float:
        """Seconds, or megabytes."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return float(next(iter(self._heard().values())))

    def _heard(self) -> dict[str, float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"it ended with code {self.process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def round(self) -> dict[str, float]:
        """Tokens per second of everything."""
        found = {"prefill_1024": LONG / self.ask(do="read", slot=0, tokens=LONG)}
        found["decode_1024"] = WRITTEN / self.ask(do="write", slots=1, tokens=WRITTEN)
        self.ask(do="read", slot=0, tokens=SHORT)
        found["decode_64"] = WRITTEN / self.ask(do="write", slots=1, tokens=WRITTEN)
        for slot in range(SLOTS):
            self.ask(do="read", slot=slot, tokens=SHORT)
        return found | {"batch_8": SLOTS * WRITTEN_EACH / self.ask(do="write", slots=SLOTS, tokens=WRITTEN_EACH)}

    def end(self) -> None:
        """Let it go."""
        self.process.communicate()


def opened(name: str, given: argparse.Namespace, models: Mapping[str, Path]) -> Way | str:
    """The way's process, or why there is none."""
    python = sys.executable
    if name == "llama.cpp":
        python = given.llama or ""
        if not python or subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode:
            return "not installed"
    try:
        return Way(name, python, models[name.split("-")[0]], given.threads)
    except ChildProcessError as error:
        return str(error)


def bandwidth(floats: torch.Tensor) -> float:
    """GB/s of reading them all once."""
    begun = time.perf_counter()
    floats.sum()
    return floats.numel() * 4 / (time.perf_counter() - begun) / 1e9


def figure(values: Sequence[float], unit: str) -> Document:
    """Median and interval."""
    value, low, high = median_interval(list(values))
    return {"value": value, "low": low, "high": high, "unit": unit, "n": len(values)}


def token_bytes(weights: Weights, context: int) -> int:
    """Bytes that a token reads after `context` others: all matrices once (of the embedding a row, unless it is the head too), keys and values in bfloat16."""
    matrices = sum(matrix.data.size for layer in weights.layers for matrix in layer.matrices.values()) + weights.head.data.size
    return matrices + len(weights.layers) * weights.kv_heads * context * weights.dim * 2 * 2


def speed(given: argparse.Namespace, models: Mapping[str, Path], progress: Progress) -> Document:
    """All ways, interleaved."""
    ways = {name: opened(name, given, models) for name in WAYS}
    running = {name: way for name, way in ways.items() if isinstance(way, Way)}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    read: list[float] = []
    floats = torch.ones(1 << 28)
    torch.set_num_threads(given.threads)
    for at in range(-1, given.rounds):  # the first is not counted
        progress.stage(f"round {at + 2} of {given.rounds + 1}")
        order = list(running)
        read.append(bandwidth(floats))
        for i in range(len(order)):
            name = order[(at + 1 + i) % len(order)]
            rounds[name].append(running[name].round())
    rows = []
    for name, way in ways.items():
        if isinstance(way, str):
            rows.append({"name": NAMES.get(name, name), "trouble": way})
            continue
        own, other = rounds[name][1:], rounds.get("llama.cpp", [])[1:]
        row: Document = {"name": NAMES.get(name, name), "trouble": None, "load_s": way.load, "memory_mb": way.ask(do="memory")}
        row |= {one: figure([r[one] for r in own], "tokens/s") for one in FIGURES}
        row["batch_gain"] = figure([r["batch_8"] / r["decode_64"] for r in own], "x")
        row |= {f"{one}_ratio": figure([a[one] / b[one] for a, b in zip(own, other, strict=True)], "x") if other else None for one in FIGURES}
        rows.append(row)
    theirs = next((row["memory_mb"] for row in rows if row["name"] == "llama.cpp" and not row["trouble"]), None)
    for row in rows:
        if not row["trouble"]:
            row["memory_ratio"] = row["memory_mb"] / theirs if theirs else None
    for way in running.values():
        way.end()
    return {"bandwidth": figure(read[1:], "GB/s"), "rows": rows, "roofline": roofline(models["lissome"], rounds["lissome"][1:], read[1:])}


def roofline(model: Path, own: Sequence[Mapping[str, float]], read: Sequence[float]) -> list[Document]:
    """The wall, and how much of it lissome reaches, round by round."""
    weights, found = open_engine(model, capacity=CAPACITY).weights, []
    for name, context in (("decode_64", SHORT + WRITTEN // 2), ("decode_1024", LONG + WRITTEN // 2)):
        size = token_bytes(weights, context)
        walls = [one * 1e9 / size for one in read]
        shares = [r[name] / wall for r, wall in zip(own, walls, strict=True)]
        found.append({"name": name, "mb": size / 1e6, "wall": figure(walls, "tokens/s"), "share": figure(shares, "")})
    return found


def perplexity(given: argparse.Namespace, models: Mapping[str, Path], progress: Progress) -> list[Document]:
    """Of windows of text that each model reads from their beginning; the change against the dequantised weights, with the interval of the mean."""
    import transformers

    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.parent.glob("docs/*.md")))
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(models["transformers"], dtype=torch.float32).eval()
    engines = {bits: open_engine(models["lissome"], capacity=given.window, threads=given.threads, inputs=bits) for bits in INPUTS}
    tokens = torch.tensor(engines[32].tokenizer.encode(text).ids)
    losses: dict[str, list[torch.Tensor]] = {"transformers, dequantised": [], **{name: [] for name in INPUTS.values()}}
    count = min(given.windows, len(tokens) // given.window)
    for at, window in enumerate(tokens[: count * given.window].view(count, -1)):
        progress.stage(f"perplexity: window {at + 1} of {count}")
        place = np.arange(len(window))
        with torch.inference_mode():
            ours = [torch.from_numpy(engine.step(Batch(window, place * 0, place, place))) for engine in engines.values()]
            said = [plain(window[None]).logits[0], *ours]
        for kept, logits in zip(losses.values(), said, strict=True):
            kept.append(torch.nn.functional.cross_entropy(logits[:-1].float(), window[1:], reduction="none").double())
    first = torch.cat(losses["transformers, dequantised"])
    found = []
    for name, parts in losses.items():
        loss = torch.cat(parts)
        change, error = float((loss - first).mean()), 1.96 * float((loss - first).std()) / len(loss) ** 0.5
        value, low, high = (100 * float(torch.tensor(one).expm1()) for one in (change, change - error, change + error))
        found.append({"name": name, "value": float(loss.mean().exp()), "change_pct": {"value": value, "low": low, "high": high, "unit": "%", "n": len(loss)}})
    return found


def run(given: argparse.Namespace, progress: Progress) -> Document:
    """The whole benchmark as its JSON document."""
    cache = Cache()
    model = given.model or next(fetch("smollm2-135m", cache, progress).rglob("*.gguf"))
    packed = cache.folder("packed-decoders", f"{file_sha256(model)[:16]}-{LAYOUT}", lambda into: pack_gguf(model, into))
    models = {"lissome": packed, "llama.cpp": model, "transformers": converted(model, cache, progress)}
    document = on(identify()) | {"threads": given.threads, "rows": [], "roofline": [], "perplexity": []}
    if "speed" in given.parts:
        document |= speed(given, models, progress)
    if "perplexity" in given.parts:
        document["perplexity"] = perplexity(given, models, progress)
    return document


def table(document: Document) -> str:
    """Speed, the wall, perplexity."""
    parts = []
    if document["rows"]:
        columns = [("prefill_1024", 0), ("decode_64", 0), ("decode_1024", 0), ("batch_8", 0)]
        shown = []
        for row in document["rows"]:
            if row["trouble"]:
                shown.append([row["name"], row["trouble"], *[""] * 6])
                continue
            cells = [spread(row[name], places) + (f", {row[f'{name}_ratio']['value']:.2f}x" if row[f"{name}_ratio"] else "") for name, places in columns]
            shown.append([row["name"], *cells, spread(row["batch_gain"]), f"{row['memory_mb']:.0f}", f"{row['load_s']:.2f}"])
        headers = ["way", "reading 1,024", "writing after 64", "writing after 1,024", "8 sequences at once", "8 over 1", "peak memory, MB", "load, s"]
        parts.append(f"Tokens per second on {document['threads']} threads, and times llama.cpp.\n\n{markdown_table(shown, headers)}")
        walls = [
            [row["name"].replace("decode_", "writing after "), f"{row['mb']:.1f}", spread(row["wall"], 0), spread(row["share"])] for row in document["roofline"]
        ]
        headers = ["", "read for a token, MB", "the wall, tokens/s", "lissome's share of it"]
        parts.append(f"Memory gives {spread(document['bandwidth'], 1)} GB/s.\n\n{markdown_table(walls, headers)}")
    if document["perplexity"]:
        shown = [[row["name"], f"{row['value']:.3f}", spread(row["change_pct"], 3)] for row in document["perplexity"]]
        parts.append(markdown_table(shown, ["way", "perplexity", "change, %"]))
    return "\n\n".join([*parts, made_on(document)])


def main() -> None:
    """Run, print, and write the tables into the docs when asked."""
    parser = options(__doc__, "decode")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--llama", default=os.environ.get("LISSOME_LLAMA"), help="an interpreter that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--window", type=int, default=512)
    given = parser.parse_args()
    publish(given, functools.partial(run, given), table)


if __name__ == "__main__":
    main()
