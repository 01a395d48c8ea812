"""A decoder twice as large as the memory it may use: peak memory, seconds a token predicted and measured, and whether the logits are the resident model's.

    python benchmarks/streaming.py [--json] [--write docs/decoding.md] [--layers 80] [--rounds 3] [--tokens 12]

A random decoder of 4-bit weights (13 MB a layer) is written to disk; what its numbers are does not matter to the time. The budget is half its size plus what
the process takes without a model. Every run is a process of its own; the ways take turns. "from the disk" has the system forget each layer after its use, as it
must where the file is larger than the machine's memory; the row above lets the system keep the file in its cache. Needs 1.1 GB of disk and 3 GB of memory.

JSON schema (--json): {"machine", "cpu", "created", "versions", "model_mb", "budget_mb", "floor_mb", "rows": [{"name": str, "peak_mb": MB,
"peak_share": peak over budget, "s_per_token": {"value", "low", "high", "unit", "n"}, "predicted": s or null, "off": the larger of predicted / measured and
its inverse, or null, "kept": parts in memory or null, "bit_equal": 1 or 0}]}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lissome.core.progress import Progress
from lissome.core.statistics import median_interval
from lissome.engines.decoding.engine import open_engine
from lissome.kernels.decoder.native import Layer, Weights
from lissome.kernels.decoder.packed import Codes, Packed, pack
from lissome.machine.budget import resident
from lissome.machine.identity import identify
from lissome.machine.memory import peak_rss
from lissome.nn.decoder.folder import TENSORS, About, save_decoder
from lissome.nn.decoder.weights import rotations
from lissome.report.markdown import markdown_table
from publishing import Document, made_on, on, options, publish, spread

HIDDEN, FFN, KV, VOCABULARY, PROMPT, CONTEXT = 2048, 2048, 256, 8192, 16, 128
SPARE_MB = 40
"""MB over the floor that a budget has beyond half the model: the window, keys and values, scratch."""
WAYS = ("resident", "streamed", "streamed from the disk")


def write_model(folder: Path, layers: int) -> float:
    """Write the decoder; its size in MB. All layers have the same numbers: each is a part of the file of its own all the same."""
    from tokenizers import Tokenizer, models

    draw = np.random.default_rng(0)

    def made(rows: int, columns: int) -> Packed:
        codes = draw.integers(16, size=(rows, columns), dtype=np.uint8)
        scale = np.full((rows, columns // 32), 0.1 / columns**0.5, np.float16)
        return pack(Codes(codes, scale, -8 * scale))

    shapes = {"q": (HIDDEN, HIDDEN), "k": (KV, HIDDEN), "v": (KV, HIDDEN), "o": (HIDDEN, HIDDEN)}
    shapes |= {"gate": (FFN, HIDDEN), "up": (FFN, HIDDEN), "down": (HIDDEN, FFN)}
    layer = Layer(np.ones(HIDDEN), np.ones(HIDDEN), {name: made(*shape) for name, shape in shapes.items()})
    embedding = made(VOCABULARY, HIDDEN)
    turned = rotations(64, CONTEXT, 10000.0)
    weights = Weights([layer] * layers, embedding, embedding, np.ones(HIDDEN), *turned, HIDDEN // 64, KV // 64, 64, 1e-5, 0.125)
    words = Tokenizer(models.WordLevel({f"w{at}": at for at in range(VOCABULARY)}, "w0"))
    save_decoder(weights, folder, words, About())
    with (folder / TENSORS).open("rb+") as file:
        os.fsync(file.fileno())  # what is not on the disk yet cannot be forgotten
    return (folder / TENSORS).stat().st_size / 1e6


def child(folder: Path, way: str, budget: int, tokens: int) -> Document:
    """One run, in this process."""
    engine = open_engine(folder, capacity=CONTEXT, budget=None if way == "resident" else budget)
    streamed, predicted = engine.streamed, None
    if streamed:
        predicted = streamed.predicted(from_disk=way == WAYS[2]).value
        if way == WAYS[2]:
            streamed.mapped.drop = streamed.mapped.forget
    seen = hashlib.sha256(engine.read(list(range(PROMPT))).tobytes())
    taken = []
    for at in range(tokens):
        begun = time.perf_counter()
        logits = engine.read([at], start=PROMPT + at)
        taken.append(time.perf_counter() - begun)
        seen.update(logits.tobytes())
    plan = streamed.plan if streamed else None
    peak = peak_rss(identify().fingerprint).value
    return {"peak_mb": peak, "taken": taken, "predicted": predicted, "kept": plan.kept if plan else None, "seen": seen.hexdigest()}


def run(layers: int, rounds: int, tokens: int, progress: Progress) -> Document:
    """The whole benchmark as its JSON document."""
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where) / "model"
        size = write_model(folder, layers)
        floor = json.loads(_python("floor", folder, 0, 0))["floor_mb"]
        budget = floor + size / 2 + SPARE_MB
        found: dict[str, list[Document]] = {way: [] for way in WAYS}
        progress.stage("streaming", rounds * len(WAYS))
        for _ in range(rounds):
            for way in WAYS:
                found[way].append(json.loads(_python(way, folder, int(1e6 * budget), tokens)))
                progress.step()
    expected = found["resident"][0]["seen"]
    rows = [row(way, runs, budget, expected) for way, runs in found.items()]
    return on(identify()) | {"model_mb": size, "budget_mb": budget, "floor_mb": floor, "rows": rows}


def row(way: str, runs: list[Document], budget: float, expected: str) -> Document:
    """What the runs of one way gave."""
    taken = [one for given in runs for one in given["taken"]]
    value, low, high = median_interval(taken)
    peak = max(given["peak_mb"] for given in runs)
    guesses = [given["predicted"] for given in runs if given["predicted"] is not None]
    predicted = statistics.median(guesses) if guesses else None
    return {
        "name": way,
        "peak_mb": peak,
        "peak_share": peak / budget,
        "s_per_token": {"value": value, "low": low, "high": high, "unit": "s", "n": len(taken)},
        "predicted": predicted,
        "off": max(predicted / value, value / predicted) if predicted else None,
        "kept": runs[0]["kept"],
        "bit_equal": int(all(given["seen"] == expected for given in runs)),
    }


def _python(way: str, folder: Path, budget: int, tokens: int) -> str:
    words = [sys.executable, __file__, "--child", way, str(folder), str(budget), str(tokens)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def table(document: Document) -> str:
    """A row for each way."""
    rows = []
    for one in document["rows"]:
        predicted = "" if one["predicted"] is None else f"{one['predicted']:.3f}"
        cells = [one["name"], f"{one['peak_mb']:,.0f}", spread(one["s_per_token"], 3), predicted, "yes" if one["bit_equal"] else "no"]
        rows.append([*cells, "" if one["kept"] is None else str(one["kept"])])
    heads = ["", "peak, MB", "s a token", "predicted", "bits of the resident model", "parts that stay"]
    about = f"Model {document['model_mb']:,.0f} MB, budget {document['budget_mb']:,.0f} MB, of which {document['floor_mb']:,.0f} MB without a model."
    return f"{markdown_table(rows, heads)}\n\n{about} {made_on(document)}"


def main() -> None:
    """Run, print, and write the table into the docs when asked; or one run of a child."""
    if sys.argv[1:2] == ["--child"]:
        way, folder, budget, tokens = sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
        print(json.dumps({"floor_mb": resident() / 1e6} if way == "floor" else child(folder, way, budget, tokens)))
        return
    parser: argparse.ArgumentParser = options(__doc__, "streaming")
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=12)
    given = parser.parse_args()
    publish(given, lambda progress: run(given.layers, given.rounds, given.tokens, progress), table)


if __name__ == "__main__":
    main()
