"""Sparse attention against torch's scaled_dot_product_attention, one layer of 9 heads of 64, causal, in one interleaved run a length.

    python benchmarks/attention.py [--json] [--write docs/attention.md] [--rounds 7] [--lengths 1024 4096 16384] [--train 8192]

Patterns: window(512) with 64 global tokens, window(64) with 8, and window(512) with the 8 highest-scoring blocks of 64 (choosing them is timed too).
Peers: SDPA, softmax(QK)V written out ("eager", up to 8,192 tokens) and, where a compiler is there, torch's FlexAttention with the first pattern (forward
alone: it cannot train on a CPU).

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "isa": str, "threads": int, "rows":
[{"name": str, "tokens": int, "type": "float32" | "bfloat16", "pass": "forward" | "forward and backward", "way": str, "latency_p50": ms,
"speedup": {"value", "low", "high"}}]}. speedup: times as fast as SDPA in the same rounds, median with its interval at 95 %.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from lissome.core.progress import Progress
from lissome.core.statistics import median_interval
from lissome.kernels.library import library
from lissome.machine.identity import identify
from lissome.nn.attention.attend import attend
from lissome.nn.attention.chosen import top_blocks
from lissome.nn.attention.patterns import Pattern, Sight, select, tokens, window
from lissome.report.markdown import markdown_table
from publishing import Document, made_on, on, options, publish, spread

HEADS, DIM, EAGER_MAX = 9, 64, 8192
SDPA = "SDPA"
Call = Callable[[], Any]


def patterns(length: int) -> dict[str, Pattern]:
    """The patterns by name; global tokens lie evenly."""
    return {
        "window 512 + 64 tokens": window(512) | tokens(range(0, length, max(1, length // 64))),
        "window 64 + 8 tokens": window(64) | tokens(range(0, length, max(1, length // 8))),
        "window 512 + 8 best blocks": window(512) | top_blocks(8),
    }


def calls(length: int, dtype: torch.dtype, train: bool) -> dict[str, Call]:
    """One call of every way at one length."""
    q, k, v = (torch.randn(1, HEADS, length, DIM, generator=torch.Generator().manual_seed(i)).to(dtype).requires_grad_(train) for i in range(3))

    def sdpa() -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def eager() -> torch.Tensor:
        scores = (q @ k.transpose(-1, -2)) * DIM**-0.5
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v

    def ours(pattern: Pattern) -> Callable[[], torch.Tensor]:
        return lambda: attend(q, k, v, select(pattern, Sight(length, length, heads=HEADS, q=q, k=k)))

    found: dict[str, Callable[[], torch.Tensor]] = {SDPA: sdpa}
    if length <= EAGER_MAX:
        found["eager"] = eager
    found |= {name: ours(pattern) for name, pattern in patterns(length).items()}
    if not train:
        found |= flex(q, k, v, length)
        return {name: torch.no_grad()(call) for name, call in found.items()}
    grad = torch.randn(1, HEADS, length, DIM).to(dtype)
    return {name: lambda call=call: torch.autograd.grad(call(), (q, k, v), grad) for name, call in found.items()}


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: int) -> dict[str, Callable[[], torch.Tensor]]:
    """torch's FlexAttention with window 512 + 64 tokens, compiled; empty where it does not compile."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    step = max(1, length // 64)

    def seen(b: Any, h: Any, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (j <= i) & ((i - j < 512) | (j % step == 0))

    try:
        mask = create_block_mask(seen, None, None, length, length, device="cpu", BLOCK_SIZE=64)
        compiled = torch.compile(flex_attention, dynamic=False)
        with torch.no_grad():
            compiled(q, k, v, block_mask=mask)
    except Exception:  # noqa: BLE001  a peer may raise anything, and its row is then left out
        return {}
    return {"FlexAttention, window 512 + 64 tokens": lambda: compiled(q, k, v, block_mask=mask)}


def timed(ways: dict[str, Call], rounds: int, progress: Progress) -> dict[str, list[float]]:
    """Milliseconds of every way, round by round, in rotating order; a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for at in range(-1, rounds):
        for name in order:
            begun = time.perf_counter()
            ways[name]()
            if at >= 0:
                times[name].append(1e3 * (time.perf_counter() - begun))
        order.append(order.pop(0))
        progress.step()
    return times


def run(lengths: list[int], trained: list[int], rounds: int, progress: Progress) -> Document:
    """The whole benchmark as its JSON document."""
    rows = []
    cases = [(n, dtype, False) for n in lengths for dtype in (torch.float32, torch.bfloat16)] + [(n, torch.float32, True) for n in trained]
    for length, dtype, train in cases:
        kind = str(dtype).removeprefix("torch.")
        progress.stage(f"{length} tokens, {kind}{', training' if train else ''}", rounds + 1)
        times = timed(calls(length, dtype, train), rounds, progress)
        for name, taken in times.items():
            value, low, high = median_interval([dense / own for dense, own in zip(times[SDPA], taken, strict=True)])
            rows.append(
                {
                    "name": f"{name}, {length}, {kind}{', trained' if train else ''}",
                    "tokens": length,
                    "type": kind,
                    "pass": "forward and backward" if train else "forward",
                    "way": name,
                    "latency_p50": statistics.median(taken),
                    "speedup": {"value": value, "low": low, "high": high},
                }
            )
    return on(identify()) | {"isa": library().isa, "threads": torch.get_num_threads(), "rows": rows}


def table(document: Document) -> str:
    """One table, a row for each way at each length."""
    rows = [[f"{r['tokens']:,}", r["type"], r["pass"], r["way"], f"{r['latency_p50']:.1f}", spread(r["speedup"])] for r in document["rows"]]
    text = markdown_table(rows, ["tokens", "type", "pass", "way", "latency p50, ms", "times SDPA"])
    return f"Kernel: {document['isa']}, {document['threads']} threads.\n\n{text}\n\n{made_on(document)}"


def main() -> None:
    """Run, print, and write the table into the docs when asked."""
    parser = options(__doc__, "attention")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 4096, 16384])
    parser.add_argument("--train", type=int, nargs="*", default=[8192])
    given = parser.parse_args()
    publish(given, lambda progress: run(given.lengths, given.train, given.rounds, progress), table)


if __name__ == "__main__":
    main()
