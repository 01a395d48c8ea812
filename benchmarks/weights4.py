"""Four-bit weights: what each way of rounding loses, and whether the native decoder computes what its codes say.

    python benchmarks/weights4.py [--parts native decoder qat minilm] [--json] [--write docs/benchmarks.md]

native: perplexity of SmolLM2-135M's GGUF file (Q4_1) in the native decoder, against the same weights dequantised in transformers, on text of 2026.
decoder: the same model's dequantised weights taken as a model in float32, rounded again by every method and packed, in the native decoder, against transformers
on those floats. They lie on Q4_1's own grid, so "with an offset" in groups of 32 finds it again; other grids must round. Calibration text is other text.
qat: gptq, and then some steps of training on the calibration text. minilm: MiniLM fine-tuned on sentiment, a model in float32 as it was made, on its test
split, computed by the torch twin of what is deployed.
--limit, --windows, --calibration, --steps and --methods make it shorter.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "settings": {option: value}, and a list for each part:
"native": [{"name", "perplexity", "float_perplexity", "times_float": interval}], "decoder" and "qat": [{"name", "method", "group", "kind", "perplexity",
"times_float": interval, "loss": interval (percent), "size_mb", "saved": percent, "minutes"}], "minilm": [{"name", "method", "group", "score": percent,
"drop_pt": interval, "size_mb", "saved": percent, "minutes"}]} with interval = {"value", "low", "high"}; perplexities at 95 % over segments of 64 tokens.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QuantizeConfig
from lissome.compress.quantize.decoder import RoundConfig, round_decoder
from lissome.compress.quantize.packing import from_quantized, separator, windows_of
from lissome.compress.quantize.simulate import simulate
from lissome.compress.quantize.task import calibration, qat_for_task
from lissome.core.cache import Cache
from lissome.core.progress import Progress
from lissome.core.quantization import Quantized
from lissome.core.statistics import certify_drop
from lissome.data.recent import recent_text
from lissome.data.sources import fetch
from lissome.kernels.decoder.native import Decoder, Pool, Weights
from lissome.kernels.decoder.reference import Reference
from lissome.kernels.library import library
from lissome.machine.identity import identify
from lissome.nn.decoder.checkpoint import Checkpoint, open_checkpoint
from lissome.nn.decoder.folder import weights_bytes
from lissome.nn.decoder.gguf import read_gguf
from lissome.nn.decoder.weights import from_gguf
from lissome.nn.gguf import source_model
from lissome.nn.likelihood import token_log_likelihoods, window_log_likelihoods
from lissome.nn.load import load_model
from lissome.optimize.demo import sentiment
from lissome.report.markdown import markdown_table
from lissome.train.batches import Batches
from lissome.train.config import TrainConfig
from long_quality import multiple
from publishing import Document, made_on, on, options, points, publish, spread

PARTS = ("native", "decoder", "qat", "minilm")
METHODS = ("rtn", "absolute", "mse", "awq", "gptq", "awq+gptq")
KINDS = {"with an offset": False, "symmetric": True}


class Texts:
    """Windows of recent text: the first documents are scored, the last ones calibrate. Token ids [windows, length]."""

    def __init__(self, checkpoint: Checkpoint, windows: int, length: int, calibration: int):
        documents = list(recent_text().values())
        between = separator(checkpoint)
        half = len(documents) // 2
        self.scored = windows_of(documents[:half], checkpoint.tokenizer, between, length, windows)
        self.calibration = windows_of(documents[half:], checkpoint.tokenizer, between, length, max(1, calibration // length))


@torch.no_grad()
def native_likelihoods(weights: Weights, texts: torch.Tensor) -> np.ndarray:
    """Log-likelihood of every token but the first [windows, length - 1], computed as deployed."""
    length = texts.shape[1]
    pool = Pool(torch.get_num_threads()) if library().handle is not None else None
    places, found = torch.arange(length), []
    for ids in texts:
        decoder = Reference(weights, 1, length) if pool is None else Decoder(weights, 1, length, pool)
        logits = torch.from_numpy(decoder.step(ids, torch.zeros(length), places, places[:-1]))
        found.append(logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0])
    return torch.stack(found).double().numpy()


@torch.no_grad()
def float_likelihoods(module: Any, texts: torch.Tensor) -> np.ndarray:
    """The same in transformers, float32."""
    return torch.cat([window_log_likelihoods(module, {"input_ids": ids[None]}) for ids in texts]).double().numpy()


def native(texts: Texts, true: np.ndarray, progress: Progress) -> list[Document]:
    """The file as it is: no weight is rounded a second time, so what differs is arithmetic."""
    path = next(iter(sorted(fetch("smollm2-135m").glob("**/*.gguf"))))
    progress.stage("the file's own codes in the native decoder", 1)
    found = native_likelihoods(from_gguf(read_gguf(path)), texts.scored)
    row = {"name": "SmolLM2-135M, Q4_1", "perplexity": perplexity(found), "float_perplexity": perplexity(true), "times_float": multiple(true - found)}
    return [row]


def decoder(checkpoint: Checkpoint, texts: Texts, true: np.ndarray, given: argparse.Namespace, progress: Progress) -> list[Document]:
    """Every method at every group; in groups of 32 symmetric, as the weights lie on the other grid, and one row to show that."""
    ways = [("rtn", 32, "with an offset")]
    ways += [(method, group, "symmetric" if group == 32 else "with an offset") for group in given.groups for method in given.methods]
    rows = []
    for method, group, kind in ways:
        begun = time.perf_counter()
        weights = round_decoder(checkpoint, RoundConfig(method=method, group=group, symmetric=KINDS[kind]), texts.calibration, progress)
        rows.append(judged(method, group, kind, weights, texts, true, time.perf_counter() - begun))
    return rows


def judged(method: str, group: int, kind: str, weights: Weights, texts: Texts, true: np.ndarray, seconds: float) -> Document:
    """A row of a packed decoder. saved: of the float32 bytes of all matrices, embedding included, which is in eight bits."""
    found = native_likelihoods(weights, texts.scored)
    times = multiple(true - found)
    every = [*(one for layer in weights.layers for one in layer.matrices.values()), weights.embedding]
    whole = 4 * sum(one.rows * one.columns for one in every)
    size = weights_bytes(weights)
    return {
        "name": f"{method}, {group}, {kind}",
        "method": method,
        "group": group,
        "kind": kind,
        "perplexity": perplexity(found),
        "times_float": times,
        "loss": {name: 100 * (value - 1) for name, value in times.items()},
        "size_mb": size / 1e6,
        "saved": 100 * (1 - size / whole),
        "minutes": seconds / 60,
    }


def trained(folder: Path, texts: Texts, true: np.ndarray, given: argparse.Namespace, progress: Progress) -> list[Document]:
    """Symmetric groups of 32: rounded by their inputs, then trained for some steps on the calibration text."""
    from lissome.compress.qat import qat

    begun = time.perf_counter()
    model = load_model(str(folder))
    batches = [{"input_ids": ids[None]} for ids in texts.calibration]
    config = QuantizeConfig(precision="w4a16", group=32, rounding="gptq", least_examples=1)
    rows = []
    start = quantize(model, config, batches, progress=progress)
    rows.append(judged("gptq, in memory", 32, "symmetric", from_quantized(start), texts, true, time.perf_counter() - begun))

    def loss(module: Any, batch: Any) -> torch.Tensor:
        ids = batch["input_ids"]
        following = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
        return -token_log_likelihoods(module, batch, following).sum() / (ids.numel() - len(ids))

    training = TrainConfig(epochs=given.steps / len(batches), lr=given.lr, precision="fp32")
    after = qat(model, start, loss, batches, training, scale_lr=1e-4, progress=progress)
    rows.append(judged(f"gptq, trained {given.steps} steps", 32, "symmetric", from_quantized(after), texts, true, time.perf_counter() - begun))
    return rows


def minilm(given: argparse.Namespace, progress: Progress) -> list[Document]:
    """MiniLM on sentiment: every method and group; gptq trained on top, where asked."""
    cache = Cache()
    model, task = sentiment(cache, progress)
    batches = Batches(task, "test", 64, shuffle=False)
    every = batches.rows(0)
    wanted = every[:: max(1, len(every) * 64 // given.limit)] if given.limit else every  # spread over all, as batches go by length
    targets = np.asarray(task.splits["test"].targets)

    @torch.inference_mode()
    def scores(module: Any) -> np.ndarray:
        from lissome.compress.batches import forward

        return np.concatenate([task.score(forward(module, batches.batch(rows)).float().numpy(), targets[rows]) for rows in wanted])

    whole = sum(tensor.nbytes for tensor in model.module.parameters())
    progress.stage("MiniLM", 2 + len(given.groups) * len(given.methods))
    before = scores(model.module)
    rows: list[Document] = []

    def add(method: str, group: int, scored: np.ndarray, drop: Document | None, size: int, seconds: float) -> None:
        row = {"name": f"{method}, {group}" if group else method, "method": method, "group": group, "score": 100 * float(scored.mean()), "drop_pt": drop}
        rows.append({**row, "size_mb": size / 1e6, "saved": 100 * (1 - size / whole), "minutes": seconds / 60})
        progress.step()

    add("torch fp32", 0, before, None, whole, 0.0)

    def judge(method: str, group: int, quantized: Quantized, seconds: float) -> None:
        after = scores(simulate(quantized.model.module, quantized.quantization, quantized.scales).eval())
        drop = points(certify_drop(before, after, 0.012, 0.95, task.exact))
        add(method, group, after, drop, stored_bytes(quantized), seconds)

    for group in given.groups:
        for method in given.methods:
            begun = time.perf_counter()
            config = QuantizeConfig(precision="w4a16", group=group, rounding=method)
            start = quantize(model, config, calibration(task))
            judge(method, group, start, time.perf_counter() - begun)
            if given.minilm_epochs and method == "gptq":
                from lissome.compress.quantize.config import QatTaskConfig

                lesson = QatTaskConfig(train=TrainConfig(epochs=given.minilm_epochs, lr=2e-5))
                judge("gptq, trained", group, qat_for_task(model, start, task, lesson, cache, progress), time.perf_counter() - begun)
    return rows


def stored_bytes(quantized: Quantized) -> int:
    """Bytes of the integers and scales, and of what stays in float32."""
    layers, total = quantized.quantization.layers, 0
    for name, module in quantized.model.module.named_modules():
        for inner, parameter in module.named_parameters(recurse=False):
            quant = layers.get(name) if inner == "weight" else None
            total += parameter.nbytes if quant is None else -(-parameter.numel() * (4 if quant.precision == "w4a16" else 8) // 8)
        scales = quantized.scales.layers.get(name)
        total += 0 if scales is None else scales.weight.nbytes + (0 if scales.zero is None else -(-scales.zero.size // 2))
    return total


def perplexity(likelihoods: np.ndarray) -> float:
    """exp of the mean negative log-likelihood."""
    return float(np.exp(-likelihoods.mean()))


def run(given: argparse.Namespace, progress: Progress) -> Document:
    """The parts asked for as a JSON document."""
    names = ("methods", "groups", "windows", "length", "calibration", "limit", "steps", "lr", "minilm_epochs")
    document = on(identify()) | {"settings": {name: getattr(given, name) for name in names}}
    if set(given.parts) - {"minilm"}:
        folder = source_model(progress=progress)
        checkpoint = open_checkpoint(folder)
        texts = Texts(checkpoint, given.windows, given.length, given.calibration)
        progress.stage("transformers, float32", 1)
        true = float_likelihoods(load_model(str(folder)).module, texts.scored)
        if "native" in given.parts:
            document["native"] = native(texts, true, progress)
        if "decoder" in given.parts:
            document["decoder"] = decoder(checkpoint, texts, true, given, progress)
        if "qat" in given.parts:
            document["qat"] = trained(folder, texts, true, given, progress)
    if "minilm" in given.parts:
        document["minilm"] = minilm(given, progress)
    return document


def table(document: Document) -> str:
    """A table for each part, and where it was made."""
    texts, own = [], document["settings"]
    if "native" in document:
        rows = [[r["name"], f"{r['float_perplexity']:.3f}", f"{r['perplexity']:.3f}", spread(r["times_float"], 4)] for r in document["native"]]
        headers = ["model", "perplexity in transformers, fp32", "in the native decoder", "times"]
        texts.append(f"The same four-bit weights, on {own['windows']} windows of {own['length']:,} tokens of 2026:\n\n{markdown_table(rows, headers)}")
    rounded = [*document.get("decoder", []), *document.get("qat", [])]
    if rounded:
        rows = [
            [
                r["method"],
                f"{r['group']}",
                r["kind"],
                f"{r['perplexity']:.3f}",
                spread(r["loss"]),
                f"{r['size_mb']:.1f}",
                f"{r['saved']:.1f}",
                f"{r['minutes']:.1f}",
            ]
            for r in rounded
        ]
        headers = ["method", "group", "grid", "perplexity", "more than in float, %", "MB", "saved, %", "minutes to make"]
        texts.append(f"SmolLM2-135M's dequantised weights, rounded again (calibrated on {own['calibration']:,} tokens):\n\n{markdown_table(rows, headers)}")
    if "minilm" in document:
        rows = [
            [r["method"], f"{r['group'] or ''}", f"{r['score']:.2f}", spread(r["drop_pt"]), f"{r['size_mb']:.1f}", f"{r['saved']:.1f}", f"{r['minutes']:.1f}"]
            for r in document["minilm"]
        ]
        headers = ["method", "group", "test score, %", "drop, pt", "MB", "saved, %", "minutes to make"]
        texts.append(f"MiniLM on sentiment:\n\n{markdown_table(rows, headers)}")
    return "\n\n".join([*texts, made_on(document)])


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = options(__doc__, "weights4")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["rtn", "mse", "awq", "gptq"])
    parser.add_argument("--groups", nargs="+", type=int, choices=[32, 64, 128], default=[32, 64])
    parser.add_argument("--windows", type=int, default=16, help="windows of text that are scored")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--calibration", type=int, default=4096, help="tokens of calibration text")
    parser.add_argument("--limit", type=int, default=2048, help="test examples for minilm; 0 takes all")
    parser.add_argument("--steps", type=int, default=16, help="training steps of qat, a window each")
    parser.add_argument("--lr", type=float, default=1e-5, help="peak learning rate of qat")
    parser.add_argument("--minilm-epochs", type=float, default=0, help="train MiniLM's gptq rows for so many passes too")
    return parser


def main() -> None:
    """Run, print, and write the tables into the docs when asked."""
    given = arguments().parse_args()
    publish(given, lambda progress: run(given, progress), table)


if __name__ == "__main__":
    main()
