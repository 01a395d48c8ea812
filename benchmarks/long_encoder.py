"""A BERT-shaped encoder on long inputs: how much faster sparse attention makes the whole model, and whether it still learns what needs a long range.

    python benchmarks/long_encoder.py [--parts speed accuracy] [--json] [--write docs/attention.md] [--lengths 10240 16384] [--rounds 5]

speed: MiniLM's shape (6 layers, 12 heads of 32, hidden 384, feed-forward 1536; positions extended, weights by lot) under torch's SDPA and under patterns, one
interleaved run a length. accuracy: a small encoder (2 layers, 4 heads of 16) learns from scratch which of two symbols stands in the last fifth of a text,
read at its first token; every way the same steps, three seeds.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "isa": str, "threads": int, "settings": {option: value},
"speed": [{"name": str, "way": str, "tokens": int, "latency_p50": ms, "speedup": interval}], "accuracy": [{"name": str, "way": str, "tokens": int, "accuracy":
interval, "n": int}]} with interval = {"value", "low", "high"}: over rounds at 95 % for speed; mean, lowest and highest over seeds in
per cent for accuracy.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from attention import timed
from lissome.core.progress import Progress
from lissome.core.statistics import ratio_interval
from lissome.data.long_range import needle_task
from lissome.kernels.library import library
from lissome.machine.identity import identify
from lissome.nn.attention.in_transformers import use
from lissome.report.markdown import markdown_table
from lissome.train.batches import Batches
from lissome.train.config import TrainConfig
from lissome.train.finetune import classification_loss
from lissome.train.loop import train
from publishing import Document, made_on, on, options, publish, spread

DENSE = "SDPA"
WAYS = {
    DENSE: None,
    "window 512 + CLS": "window(512) | sink(1) | from_first(1)",
    "window 64 + 8 global tokens": "window(64) | sink(8) | from_first(8)",
    "multi-scale 32, 64, 128 + CLS": "multi_scale(32, 64, 128) | sink(1) | from_first(1)",
}
LOCAL = {"window 64 alone": "window(64)"}
BATCH = 16
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 256}


def encoder(length: int, pattern: str | None, seed: int = 0, **sizes: Any) -> Any:
    """A classifier of MiniLM's shape, or of other `sizes`, with positions for `length` tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536} | sizes
    config = BertConfig(**shape, max_position_embeddings=length, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    model = BertForSequenceClassification(config).eval()
    model.set_attn_implementation("sdpa")
    return model if pattern is None else use(model, pattern)


def speed(lengths: list[int], rounds: int, progress: Progress) -> list[Document]:
    """Whole forward passes of one text, every way in the same rounds."""
    rows = []
    for length in lengths:
        ids = torch.randint(5, 30000, (1, length), generator=torch.Generator().manual_seed(0))
        calls = {}
        for name, pattern in WAYS.items():
            model = encoder(length, pattern)
            calls[name] = torch.inference_mode()(lambda model=model, ids=ids: model(input_ids=ids))
        progress.stage(f"{length} tokens", rounds + 1)
        times = timed(calls, rounds, progress)
        for name, taken in times.items():
            value, low, high = ratio_interval(times[DENSE], taken)
            pace = {"value": value, "low": low, "high": high}
            rows.append({"name": f"{name}, {length}", "way": name, "tokens": length, "latency_p50": statistics.median(taken), "speedup": pace})
    return rows


def accuracy(length: int, steps: int, seeds: int, progress: Progress) -> list[Document]:
    """Test accuracy of the small encoder under every way."""
    sizes: Any = {"train": BATCH * steps, "calibration": 10, "validation": 10, "test": 512}
    rows = []
    for name, pattern in (WAYS | LOCAL).items():
        found = []
        for seed in range(seeds):
            task = needle_task(length, 4 * length // 5, sizes=sizes, seed=seed)
            model = encoder(length, pattern, seed, **SMALL)
            config = TrainConfig(epochs=1, lr=2e-3, warmup=0.1, schedule="cosine", precision="fp32", seed=seed)
            train(model, Batches(task, "train", BATCH, seed=seed), classification_loss(), config, progress=progress)
            split = task.splits["test"]
            with torch.inference_mode():
                outputs = [model(input_ids=torch.stack([torch.as_tensor(one) for one in split.inputs[at : at + 32]])).logits for at in range(0, len(split), 32)]
            found.append(100 * float(task.score(torch.cat(outputs).numpy(), split.targets).mean()))
        spreads = {"value": statistics.mean(found), "low": min(found), "high": max(found)}
        rows.append({"name": name, "way": name, "tokens": length, "accuracy": spreads, "n": len(split)})
    return rows


def table(document: Document) -> str:
    """A table for each part that ran."""
    parts = [f"Kernel: {document['isa']}, {document['threads']} threads."]
    if document["speed"]:
        rows = [[f"{r['tokens']:,}", r["way"], f"{r['latency_p50']:,.0f}", spread(r["speedup"])] for r in document["speed"]]
        parts.append(markdown_table(rows, ["tokens", "way", "latency p50, ms", "times SDPA"]))
    if document["accuracy"]:
        rows = [[f"{r['tokens']:,}", r["way"], spread(r["accuracy"], 1)] for r in document["accuracy"]]
        parts.append(markdown_table(rows, ["tokens", "way", "right of 512 test texts, % (mean of seeds, lowest, highest)"]))
    return "\n\n".join([*parts, made_on(document)])


def main() -> None:
    """Run, print, and write the tables into the docs when asked."""
    parser = options(__doc__, "long-encoder")
    parser.add_argument("--parts", nargs="+", choices=("speed", "accuracy"), default=["speed", "accuracy"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[10240, 16384])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-length", type=int, default=160)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()

    def run(progress: Progress) -> Document:
        settings = {name: getattr(given, name) for name in ("lengths", "rounds", "train_length", "steps", "seeds")}
        fast = speed(given.lengths, given.rounds, progress) if "speed" in given.parts else []
        right = accuracy(given.train_length, given.steps, given.seeds, progress) if "accuracy" in given.parts else []
        about = {"isa": library().isa, "threads": torch.get_num_threads(), "settings": settings}
        return on(identify()) | about | {"speed": fast, "accuracy": right}

    publish(given, run, table)


if __name__ == "__main__":
    main()
