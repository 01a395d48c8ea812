"""Sparse attention's quality on long inputs: SmolLM2-135M as it is, without training, and a small model that learns associative recall from scratch.

    python benchmarks/long_inputs.py [--parts recall perplexity passkey mqar speed] [--json] [--write docs/attention.md] [--out runs/long.json]

Ways: dense, window alone, and window + sink + the best blocks by lot, by their mean key, by what the first query of a tile pays them (ours: "leading query"),
and by an oracle that computes all pairs; `--way NAME=PATTERN` adds one. All but dense show a query the same number of keys. --out keeps the parts' figures in
a file that later runs add to and write from, so that parts can run one at a time.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "settings": {option: value}, and a list for each part
that ran: "recall": [{"way", "tokens", "texts", "kept", "worst", "of_oracle"}] (shares), "perplexity": [{"name", "way", "from", "to", "texts", "perplexity",
"times_dense": interval}], "passkey": [{"way", "tokens", "depth", "texts", "found": interval}] and "passkeys": [{"name", "way", "texts", "found": interval,
"fewer": share less than dense}], "mqar": [{"way", "seeds", "accuracy": interval}] (mean over seeds, lowest, highest), "speed": [{"name", "way", "pass":
"prefill" | "step", "tokens", "threads", "latency_p50": ms, "speedup": interval}]} with interval = {"value", "low", "high"}.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attention import timed
from lissome.core.errors import MachineMismatch
from lissome.core.progress import Progress
from lissome.core.statistics import ratio_interval
from lissome.machine.identity import identify
from lissome.nn.gguf import source_model
from lissome.nn.likelihood import hidden_states
from lissome.nn.load import load_model
from lissome.report.markdown import markdown_table
from long_mqar import Sizes, recalled
from long_quality import passkeys, perplexity, recall, whole, windows
from long_ways import DENSE, OURS, Ways, attending, ways
from publishing import Document, made_on, on, options, publish, spread

PARTS = ("recall", "perplexity", "passkey", "mqar", "speed")
STEPS = 20
"""Steps of a decoder that are timed together."""


def speed(folder: Path, patterns: Ways, length: int, rounds: int, progress: Progress) -> list[Document]:
    """SmolLM2's trunk, dense by SDPA against ours, two models with the same weights in one interleaved run: reading a prompt, and the steps after it."""
    text = windows(folder, length, 1)
    read: dict[str, Callable[[], Any]] = {}
    write: dict[str, Callable[[], Any]] = {}
    for name in (DENSE, OURS):
        model: Any = attending(load_model(str(folder)).module, patterns[name])
        read[name] = torch.inference_mode()(lambda model=model: hidden_states(model.model, {"input_ids": text}))
        write[name] = torch.inference_mode()(steps(model.model, text[:, : length - (rounds + 1) * STEPS]))  # within its positions
    progress.stage(f"prefill of {length} tokens", rounds + 1)
    times = {"prefill": timed(read, rounds, progress)}
    progress.stage(f"steps after {length} tokens", rounds + 1)
    times["step"] = {name: [one / STEPS for one in taken] for name, taken in timed(write, rounds, progress).items()}
    rows = []
    for kind, ways_times in times.items():
        for name, taken in ways_times.items():
            value, low, high = ratio_interval(ways_times[DENSE], taken)
            pace = {"value": value, "low": low, "high": high}
            about = {"name": f"{name}, {kind}", "way": name, "pass": kind, "tokens": length, "threads": torch.get_num_threads()}
            rows.append(about | {"latency_p50": statistics.median(taken), "speedup": pace})
    return rows


def steps(trunk: Any, text: torch.Tensor) -> Callable[[], None]:
    """What takes some more steps after `text`, which is read before the first of them; the cache grows by them."""
    from transformers import DynamicCache

    cache = DynamicCache()

    def go_on() -> None:
        if not cache.get_seq_length():
            trunk(input_ids=text, past_key_values=cache)
        for at in range(STEPS):
            trunk(input_ids=text[:, at : at + 1], past_key_values=cache)

    return go_on


def run(given: argparse.Namespace, progress: Progress) -> Document:
    """The parts asked for as a JSON document, beside those that --out holds already."""
    patterns = ways(given.window, given.blocks, given.sink, given.way)
    before: Document = json.loads(given.out.read_text(encoding="utf-8")) if given.out and given.out.exists() else {}
    here = on(identify())
    if before and before["machine"] != here["machine"]:
        raise MachineMismatch(f"{given.out} holds figures of {before['machine']}, this is {here['machine']}", do="name another file with --out")
    document = before | here
    document["settings"] = before.get("settings", {}) | {part: settings(given, part, patterns) for part in given.parts}
    folder = Path(given.model) if given.model else source_model(progress=progress) if set(given.parts) - {"mqar"} else Path()

    def model() -> Any:
        return load_model(str(folder)).module

    sizes = Sizes(given.mqar_length, given.mqar_pairs, given.mqar_vocabulary, given.mqar_dim, given.mqar_steps, given.mqar_size, given.mqar_lr)
    scratch = ways(given.mqar_window, given.mqar_blocks, 0, given.mqar_way)
    work: dict[str, Callable[[], list[Document]]] = {
        "recall": lambda: recall(model(), folder, patterns, given.length, given.texts, given.rows, progress),
        "perplexity": lambda: perplexity(model(), folder, patterns, given.length, given.texts, given.edges, progress),
        "passkey": lambda: passkeys(model(), folder, patterns, given.passkey_lengths, given.depths, given.passkeys, progress),
        "mqar": lambda: recalled(scratch, sizes, range(given.seeds), progress),
        "speed": lambda: speed(folder, patterns, given.length, given.rounds, progress),
    }
    for part in given.parts:
        document[part] = work[part]()
        if part == "passkey":
            document["passkeys"] = whole(document[part])
        if given.out:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return document


def settings(given: argparse.Namespace, part: str, patterns: Ways) -> Document:
    """The options that a part depends on."""
    if part == "mqar":
        return {name: value for name, value in vars(given).items() if name.startswith("mqar_")} | {"seeds": given.seeds}
    return {"model": given.model or "smollm2-135m", "ours": patterns[OURS], "length": given.length}


def table(document: Document) -> str:
    """A table for each part that the document holds, and where it was made."""
    made: dict[str, Callable[[Document], str]] = {"recall": _recall, "perplexity": _perplexity, "passkey": _passkey, "mqar": _mqar, "speed": _speed}
    texts = [text(document) for part, text in made.items() if part in document]
    return "\n\n".join([*texts, made_on(document)])


def _said(document: Document, part: str) -> str:
    """The model and our pattern."""
    return f"{document['settings'][part]['model']}, `{document['settings'][part]['ours']}`"


def _recall(document: Document) -> str:
    rows = [[r["way"], f"{r['kept']:.3f}", f"{r['worst']:.3f}", f"{r['of_oracle']:.3f}"] for r in document["recall"]]
    first = document["recall"][0]
    texts = f"{first['texts']} texts of {first['tokens']:,} tokens, queries of the second half"
    text = f"Share of dense attention's weight that is kept ({_said(document, 'recall')}; {texts}):"
    return f"{text}\n\n{markdown_table(rows, ['way', 'mean over layers and heads', 'worst twentieth of the heads', 'of the oracle'])}"


def _perplexity(document: Document) -> str:
    every = document["perplexity"]
    spans = list(dict.fromkeys((r["from"], r["to"]) for r in every))
    rows = []
    for name in dict.fromkeys(r["way"] for r in every):
        own = {(r["from"], r["to"]): r for r in every if r["way"] == name}
        rows.append(
            [name, *(f"{own[s]['perplexity']:.2f}" if name == DENSE else f"{own[s]['perplexity']:.2f}, x {spread(own[s]['times_dense'], 3)}" for s in spans)]
        )
    text = f"Perplexity on text of 2026 by a token's place, and times the dense model's ({_said(document, 'perplexity')}; {every[0]['texts']} texts):"
    return f"{text}\n\n{markdown_table(rows, ['way', *(f'{begin:,} to {end:,}' for begin, end in spans)])}"


def _passkey(document: Document) -> str:
    every = document["passkey"]
    columns = list(dict.fromkeys((r["tokens"], r["depth"]) for r in every))
    of_all = {r["way"]: r["found"] for r in document["passkeys"]}
    rows = []
    for name in dict.fromkeys(r["way"] for r in every):
        own = {(r["tokens"], r["depth"]): r for r in every if r["way"] == name}
        rows.append([name, *(f"{own[c]['found']['value']:.2f}" for c in columns), spread(of_all[name])])
    text = f"Passkeys found, by length and depth ({_said(document, 'passkey')}; {every[0]['texts']} texts each):"
    return f"{text}\n\n{markdown_table(rows, ['way', *(f'{tokens:,} at {depth:g}' for tokens, depth in columns), 'all'])}"


def _mqar(document: Document) -> str:
    own = document["settings"]["mqar"]
    text = (
        f"Associative recall learned from scratch: two layers of {own['mqar_dim']}, {own['mqar_pairs']} pairs in {own['mqar_length']} tokens, "
        f"{own['mqar_steps']:,} steps, window {own['mqar_window']} and {own['mqar_blocks']} blocks; the mean of {own['seeds']} seeds, lowest and highest:"
    )
    return f"{text}\n\n{markdown_table([[r['way'], spread(r['accuracy'], 3)] for r in document['mqar']], ['way', 'accuracy'])}"


def _speed(document: Document) -> str:
    rows = [[r["way"], r["pass"], f"{r['tokens']:,}", f"{r['latency_p50']:,.0f}", spread(r["speedup"])] for r in document["speed"]]
    text = f"Reading a prompt, and one step of the decoder after it ({_said(document, 'speed')}), {document['speed'][0]['threads']} threads:"
    return f"{text}\n\n{markdown_table(rows, ['way', 'pass', 'tokens', 'latency p50, ms', 'times dense (SDPA)'])}"


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = options(__doc__, "long-inputs")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="which to run; none: only show what --out holds")
    parser.add_argument("--out", type=Path, help="a JSON file that keeps the figures of every part that has run")
    parser.add_argument("--model", help="a Hugging Face folder or GGUF file; SmolLM2-135M unless given")
    parser.add_argument("--way", action="append", default=[], metavar="NAME=PATTERN", help="one more way, for all parts but mqar")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--sink", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--length", type=int, default=8192, help="tokens, for recall, perplexity and speed")
    parser.add_argument("--texts", type=int, default=2, help="windows of text, for recall and perplexity")
    parser.add_argument("--rows", type=int, default=64, help="queries sampled, for recall")
    parser.add_argument("--edges", type=int, nargs="+", default=[1024, 2048, 4096], help="where perplexity's buckets meet")
    parser.add_argument("--passkey-lengths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--depths", type=float, nargs="+", default=[0.1, 0.5, 0.9])
    parser.add_argument("--passkeys", type=int, default=2, help="texts for each length and depth")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mqar-window", type=int, default=64)
    parser.add_argument("--mqar-blocks", type=int, default=1)
    parser.add_argument("--mqar-way", action="append", default=[], metavar="NAME=PATTERN")
    parser.add_argument("--mqar-length", type=int, default=512)
    parser.add_argument("--mqar-pairs", type=int, default=32)
    parser.add_argument("--mqar-vocabulary", type=int, default=256)
    parser.add_argument("--mqar-dim", type=int, default=64)
    parser.add_argument("--mqar-steps", type=int, default=600)
    parser.add_argument("--mqar-size", type=int, default=16)
    parser.add_argument("--mqar-lr", type=float, default=3e-3)
    parser.add_argument("--rounds", type=int, default=7)
    return parser


def main() -> None:
    """Run, print, and write the tables into the docs when asked."""
    given = arguments().parse_args()
    publish(given, lambda progress: run(given, progress), table)


if __name__ == "__main__":
    main()
