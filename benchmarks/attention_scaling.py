"""How time and memory of one attention layer grow with the length, forward and backward: 9 heads of 64, causal, float32, batch 1.

    python benchmarks/attention_scaling.py [--json] [--write docs/attention.md] [--plot docs/attention-scaling] [--lengths 1024 ... 131072] [--rounds 3]

Every length and way runs in a process of its own, which is where its memory is read: the peak of the whole process less the peak before the call, so inputs
and their gradients are not in it on the input's side, and what the call keeps, returns and needs on the way is. Ways: torch's SDPA, softmax(QK)V written
out ("eager", up to 8,192 tokens), window(512) with 64 global tokens, window(512) with the 8 best blocks. What would take longer than --most seconds a call,
by the length before, is left out.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "isa": str, "threads": int, "rows":
[{"name": str, "tokens": int, "way": str, "seconds": figure, "memory_mb": float}], "exponents": {way: {"seconds": float, "memory_mb": float}}} with figure =
{"value", "low", "high", "unit", "n"}. Exponents are of least-squares fits over the lengths from 4,096 on.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from attention import DIM, EAGER_MAX, HEADS, SDPA, calls
from lissome.core.progress import Progress
from lissome.core.statistics import median_interval
from lissome.kernels.library import library
from lissome.machine.identity import identify
from lissome.report.curves import curves, exponent
from lissome.report.markdown import markdown_table
from publishing import Document, made_on, on, options, publish, spread

WAYS = (SDPA, "eager", "window 512 + 64 tokens", "window 512 + 8 best blocks")
FIT_FROM = 4096


def one(way: str, length: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round and megabytes of one way at one length, in this process."""
    call = calls(length, torch.float32, train=True)[way]
    calls(256, torch.float32, train=True)[way]()  # what is loaded once is loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": taken[1:] or taken, "memory_mb": max(peak - before, 0) * 1024 / 1e6}


def run(lengths: list[int], rounds: int, most: float, progress: Progress) -> Document:
    """The whole benchmark as its JSON document."""
    rows: list[dict[str, Any]] = []
    last: dict[str, float] = {}
    for length in lengths:
        progress.stage(f"{length} tokens", len(WAYS))
        for way in WAYS:
            expected = 4.5 * last.get(way, 0)  # of a way whose cost grows with the square, a little more than that
            if (way == "eager" and length > EAGER_MAX) or expected > most or (length > lengths[0] and way not in last):
                last.pop(way, None)
                continue
            command = [sys.executable, __file__, "--one", way, "--lengths", str(length), "--rounds", str(rounds if expected * rounds < most else 0)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
            value, low, high = median_interval(found["seconds"])
            last[way] = value
            figure = {"value": value, "low": low, "high": high, "unit": "s", "n": len(found["seconds"])}
            rows.append({"name": f"{way}, {length}", "tokens": length, "way": way, "seconds": figure, "memory_mb": found["memory_mb"]})
            progress.step()
    fits = {
        way: {"seconds": exponent([(n, s) for n, s, _ in points]), "memory_mb": exponent([(n, max(m, 1.0)) for n, _, m in points])}
        for way in WAYS
        if len(points := [(r["tokens"], r["seconds"]["value"], r["memory_mb"]) for r in rows if r["way"] == way and r["tokens"] >= FIT_FROM]) > 1
    }
    return on(identify()) | {"isa": library().isa, "threads": torch.get_num_threads(), "rows": rows, "exponents": fits}


def table(document: Document) -> str:
    """The fitted exponents, then a row for each length and way."""
    fitted = "; ".join(f"{way}: time n^{fit['seconds']:.2f}, memory n^{fit['memory_mb']:.2f}" for way, fit in document["exponents"].items())
    rows = [[f"{r['tokens']:,}", r["way"], spread(r["seconds"], 3), f"{r['memory_mb']:,.0f}"] for r in document["rows"]]
    grid = markdown_table(rows, ["tokens", "way", "forward and backward, s", "memory, MB"])
    head = f"One layer, {HEADS} heads of {DIM}, float32, kernel {document['isa']}, {document['threads']} threads. From {FIT_FROM:,} tokens on: {fitted}."
    return f"{head}\n\n{grid}\n\n{made_on(document)}"


def plots(document: Document) -> dict[str, str]:
    """SVGs by what they show."""
    found = {}
    for key, title, unit in (("time", "Forward and backward of one layer", "seconds"), ("memory", "Memory of that beyond the inputs", "MB")):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in document["rows"]:
            value = row["seconds"]["value"] if key == "time" else max(row["memory_mb"], 1.0)
            lines.setdefault(row["way"], []).append((row["tokens"], value))
        found[key] = curves(title, "tokens", unit, lines)
    return found


def main() -> None:
    """Run, print, and write table and plots when asked."""
    parser = options(__doc__, "attention-scaling")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024 << i for i in range(8)])
    parser.add_argument("--most", type=float, default=60, help="seconds a call may take")
    parser.add_argument("--plot", type=Path, help="write PATH-time.svg and PATH-memory.svg")
    parser.add_argument("--one", help="measure this way alone at the first length, and print JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.lengths[0], given.rounds)))
        return

    def measured(progress: Progress) -> Document:
        document = run(given.lengths, given.rounds, given.most, progress)
        for key, text in plots(document).items() if given.plot else ():
            Path(f"{given.plot}-{key}.svg").write_text(text, encoding="utf-8")
        return document

    publish(given, measured, table)


if __name__ == "__main__":
    main()
