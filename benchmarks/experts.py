"""A decoder with 16 experts against dense ones: as fast as which, reading how much, and as good at what each token costs.

    python benchmarks/experts.py [--json] [--write docs/experts.md] [--steps 600] [--seeds 0 1 2] [--width 1024] [--layers 8] [--rounds 15] [--out FOLDER]

Decoding: a Llama whose feed-forward networks have 16 x `--width` neurons, and one with as many in 16 experts of which a token takes 2, with random weights, one
token a step after a short prompt, interleaved: by lissome's decoder in float32 and with codes of 4 bits, and by transformers in float32. Bytes: of the weights
that a step reads, counted from the experts chosen, and the pages that the kernel saw referenced (Linux, /proc/self/clear_refs). The same for the feed-forward
network alone, with weights of 4 bits. Needs about 8 GB of memory at `--width` 1024 and `--layers` 8.
Quality: Llamas of `--small` width learn the texts of four domains, equal steps, batches and seeds: dense ones with as many neurons as a token's experts have
(and as many more as the router has weights), and experts balanced by biases or by the Switch loss. The loss is that of held-out documents. What was learned is
kept, so that a run that was stopped goes on. --out keeps the first seed's model with experts as a folder for `lissome experts`.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "decode": [{"name": "decoder, fp32" |
"decoder, 4 bits" | "transformers, fp32" | "network, 4 bits", "dense_ms": float, "experts_ms": float, "speedup": figure, "dense_mb": float, "experts_mb": float,
"saved": percent, "referenced": [MB, MB] or null}],
"quality": {"tokens": int, "rows": [{"name": "dense" | "bias" | "switch", "active": int, "total": int, "loss": figure, "seconds": float, "imbalance": float or
null}], "worse": figure, "imbalance": figure, "specialisation": {"bits", "chance", "p", "layer"}}} with figure = {"value", "low", "high"}. speedup: dense over
experts in the same round, median with its interval at 95 %. loss: nats a token, mean over seeds, lowest and highest. worse: loss of `bias` less that of dense,
same seed, mean, lowest and highest. imbalance: max over mean of the experts' load over the last tenth of the steps, of the worst layer, worst seed last.
specialisation: of the first seed's layer furthest from chance; chance: the bits that permuted windows give on average; p: allows for all layers.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention import timed
from lissome.compress.experts import quantize_experts
from lissome.core.cache import Cache, digest
from lissome.core.progress import Progress
from lissome.core.statistics import median_interval
from lissome.data.domains import domain_texts, domain_windows
from lissome.data.packing import pack, token_ids
from lissome.data.vocabulary import END, tokenizer_for
from lissome.kernels.decoder.ffn import Experts as Routing
from lissome.kernels.decoder.ffn import Ffn
from lissome.kernels.decoder.native import Decoder, Layer, Pool, Weights
from lissome.kernels.decoder.packed import Codes
from lissome.kernels.decoder.packed import pack as laid_out
from lissome.machine.identity import identify
from lissome.nn.decoder.modules import from_llama
from lissome.nn.load import as_model, save_model
from lissome.nn.moe.balance import layers_of
from lissome.nn.moe.config import MoEConfig
from lissome.nn.moe.in_models import put_experts
from lissome.nn.moe.layer import MoE
from lissome.nn.moe.specialise import expert_use
from lissome.nn.moe.watch import watching
from lissome.report.markdown import markdown_table
from lissome.train.batches import WindowBatches, next_tokens
from lissome.train.config import TrainConfig
from lissome.train.experts import Balance, balanced
from lissome.train.finetune import language_loss
from lissome.train.loop import train
from publishing import Document, made_on, on, options, publish, spread

EXPERTS, ACTIVE = 16, 2
VOCABULARY, LENGTH, SIZE = 4096, 128, 16
PROMPT = 16
HELD_OUT = 20
"""Of so many documents of a domain, one is for the test."""
ALPHABET = 64
"""Width of the attention heads of the decoding models; the small ones have half of it."""


def llama(width: int, layers: int, neurons: int, head: int, seed: int = 0) -> Any:
    """A Llama with fresh weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // head, "num_key_value_heads": width // head}
    return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=neurons, vocab_size=VOCABULARY, max_position_embeddings=1024, tie_word_embeddings=True))


def with_experts(model: Any, width: int, config: MoEConfig) -> Any:
    """The model with layers of experts in the places of its feed-forward networks."""
    return put_experts(model, {f"model.layers.{at}.mlp": MoE(width, config) for at in range(len(model.model.layers))})


def stepping(model: Any) -> Callable[[], None]:
    """One token after a prompt; the cache is cut back after each, so that every call does the same work on another token."""
    ids = torch.randint(VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    state = {"past": model(input_ids=ids, use_cache=True).past_key_values, "token": 0}

    def step() -> None:
        with torch.no_grad():
            state["token"] = (state["token"] + 997) % VOCABULARY
            model(input_ids=torch.tensor([[state["token"]]]), past_key_values=state["past"], use_cache=True)
            state["past"].crop(-1)

    return step


def decoder_weights(given: argparse.Namespace, bits: int, experts: int) -> Weights:
    """A decoder of lissome's with random weights, EXPERTS * width neurons a layer: in one dense network, or in so many experts."""
    width, draw = given.width, torch.Generator().manual_seed(0)

    def drawn(rows: int, columns: int) -> torch.Tensor | Codes:
        if bits == 32:
            return torch.randn(rows, columns, generator=draw) * 0.02
        scale = torch.full((rows, columns // 32), 0.004, dtype=torch.float16)
        return Codes(torch.randint(16, (rows, columns), dtype=torch.uint8, generator=draw), scale, -8 * scale)

    trunk = from_llama(llama(width, given.layers, 32, ALPHABET), lambda _, weight: weight if bits == 32 else drawn(*weight.shape))
    neurons = EXPERTS * width // max(1, experts)
    ffn = Ffn("experts", experts=Routing(experts, ACTIVE)) if experts else Ffn()

    def layer(one: Layer) -> Layer:
        matrices = {name: matrix for name, matrix in one.matrices.items() if name in ("q", "k", "v", "o")}
        for name in ffn.names():
            shape = (experts, width) if name == "router" else (width, neurons) if name.endswith("down") else (neurons, width)
            matrices[name] = laid_out(torch.randn(shape, generator=draw) if name == "router" else drawn(*shape))
        return dataclasses.replace(one, matrices=matrices, ffn=ffn)

    return dataclasses.replace(trunk, layers=[layer(one) for one in trunk.layers])


def stepping_here(weights: Weights) -> Callable[[], None]:
    """As `stepping`, by lissome's decoder."""
    decoder = Decoder(weights, 1, 2 * PROMPT, Pool(torch.get_num_threads()))
    prompt = torch.randint(VOCABULARY, (PROMPT,), generator=torch.Generator().manual_seed(0))
    decoder.step(prompt, torch.zeros(PROMPT), torch.arange(PROMPT), torch.tensor([PROMPT - 1]))
    state = {"token": 0}

    def step() -> None:
        state["token"] = (state["token"] + 997) % VOCABULARY
        decoder.step(torch.tensor([state["token"]]), torch.zeros(1), torch.tensor([PROMPT]), torch.zeros(1))

    return step


def read_here_mb(weights: Weights) -> float:
    """Megabytes that a token reads of a decoder of lissome's: every matrix once (the head is the embedding), of experts the ACTIVE that it takes."""
    every = [(name, matrix.data.size) for layer in weights.layers for name, matrix in layer.matrices.items()]
    return (weights.head.data.size + sum(size * (ACTIVE / EXPERTS if name.startswith("experts.") else 1) for name, size in every)) / 1e6


def read_mb(model: Any, step: Callable[[], None]) -> float:
    """Megabytes of weights that a step reads: all but experts that were not chosen and the rows of the embedding (tied, so the head reads them)."""
    total = float(sum(one.numel() * one.element_size() for one in model.parameters()))
    total += sum(one.numel() for one in model.buffers() if one.dtype == torch.uint8)
    for layer in layers_of(model):
        with watching(layer) as watched:
            step()
        chosen = int((next(iter(watched.counts().values()))[0] > 0).sum())
        slabs = [one for name, one in layer.experts.state_dict().items() if name in ("up", "down")]
        total -= sum(one.numel() * one.element_size() for one in slabs) * (1 - chosen / layer.config.experts)
    return total / 1e6


def referenced_mb(work: Callable[[], None]) -> float | None:
    """Megabytes of this process's pages that were referenced during `work`; None where the kernel does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("1")
        work()
        return sum(map(int, re.findall(r"^Referenced:\s+(\d+) kB", Path("/proc/self/smaps").read_text(), re.M))) / 1e3
    except OSError:
        return None


def decoding(given: argparse.Namespace, progress: Progress) -> list[Document]:
    """Dense against experts of the same total size."""
    width, neurons = given.width, EXPERTS * given.width
    experts = MoEConfig(experts=EXPERTS, active=ACTIVE, neurons=given.width)
    models = {"dense": llama(width, given.layers, neurons, ALPHABET).eval()}
    models["experts"] = with_experts(llama(width, given.layers, 8, ALPHABET), width, experts).eval()
    with torch.no_grad():
        works = {name: stepping(one) for name, one in models.items()}
        rows = [compared("transformers, fp32", {name: read_mb(one, works[name]) for name, one in models.items()}, works, given.rounds, progress)]
    del models, works
    for name, bits in (("decoder, fp32", 32), ("decoder, 4 bits", 4)):
        weights = {way: decoder_weights(given, bits, count) for way, count in (("dense", 0), ("experts", EXPERTS))}
        megabytes = {way: read_here_mb(one) for way, one in weights.items()}
        rows.append(compared(name, megabytes, {way: stepping_here(one) for way, one in weights.items()}, given.rounds, progress))
        del weights
    layers = {"dense": MoEConfig(experts=1, active=1, neurons=neurons), "experts": experts}
    networks = {name: quantize_experts(torch.nn.ModuleList([MoE(width, config)])).eval() for name, config in layers.items()}
    generator = torch.Generator().manual_seed(0)

    def once(network: Any) -> Callable[[], None]:
        def work() -> None:
            with torch.no_grad():
                network[0](torch.randn(1, width, generator=generator))

        return work

    calls = {name: once(one) for name, one in networks.items()}
    megabytes = {name: read_mb(one, calls[name]) for name, one in networks.items()}
    return [*rows, compared("network, 4 bits", megabytes, calls, 4 * given.rounds, progress)]


def compared(name: str, megabytes: dict[str, float], works: dict[str, Callable[[], None]], rounds: int, progress: Progress) -> Document:
    """A row of the decoding table."""
    progress.stage(name, rounds + 1)
    times = timed(works, rounds, progress)
    value, low, high = median_interval([a / b for a, b in zip(times["dense"], times["experts"], strict=True)])
    seen = [referenced_mb(works[way]) for way in ("dense", "experts")]
    return {
        "name": name,
        **{f"{way}_ms": float(np.median(taken)) for way, taken in times.items()},
        "speedup": {"value": value, "low": low, "high": high},
        **{f"{way}_mb": one for way, one in megabytes.items()},
        "saved": 100 * (1 - megabytes["experts"] / megabytes["dense"]),
        "referenced": None if None in seen else seen,
    }


class Texts:
    """Windows of the four domains: shuffled batches of the documents for training, and the held-out ones. Equal shares of every domain."""

    def __init__(self, steps: int, progress: Progress):
        documents = domain_texts(progress=progress)
        parts = {name: [one for at, one in enumerate(texts) if at % HELD_OUT] for name, texts in documents.items()}
        progress.stage("learn the vocabulary")
        self.tokenizer = tokenizer_for([text[:4000] for texts in parts.values() for text in texts], VOCABULARY)
        self.held_out = {name: [one for at, one in enumerate(texts) if not at % HELD_OUT] for name, texts in documents.items()}
        progress.stage("cut the texts into tokens")
        end, count = self.tokenizer.token_to_id(END), -(-steps * SIZE // len(parts))
        windows = [self._windows(texts, end, count) for texts in parts.values()]
        self.windows = [one for every in windows for one in every]
        self.tests = [one for texts in self.held_out.values() for one in self._windows(texts, end, 32)]
        self.fingerprint = digest([window.tobytes().hex()[:64] for window in self.windows], len(self.windows), len(self.tests))

    def _windows(self, texts: Sequence[str], end: int, count: int) -> list[np.ndarray]:
        order = np.random.default_rng(0).permutation(len(texts))
        found = []
        for window in pack(token_ids((texts[i] for i in order), self.tokenizer), LENGTH, end):
            found.append(window.ids)
            if len(found) == count:
                break
        return found


def small(given: argparse.Namespace, way: str, seed: int) -> Any:
    """A model of the quality part."""
    width = given.small
    if way == "dense":
        router = -(-EXPERTS // 3)  # as many weights as the router has, three a neuron and input
        return llama(width, 4, ACTIVE * width + router, ALPHABET // 2, seed)
    # Weights that sum to the number of active experts: together these are then as loud as the dense network, of whose size they are.
    config = MoEConfig(experts=EXPERTS, active=ACTIVE, neurons=width, balance=way, rate=given.rate, scale=ACTIVE)
    return with_experts(llama(width, 4, 8, ALPHABET // 2, seed), width, config)


def initialised(model: Any) -> Any:
    """Experts begin as transformers' linear layers do, so that no way has a better start: normal numbers of deviation 0.02."""
    for layer in layers_of(model):
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def learned(given: argparse.Namespace, texts: Texts, way: str, seed: int, cache: Cache, progress: Progress) -> Document:
    """One model trained and tested, from the cache after the first time."""
    shaping = {name: getattr(given, name) for name in ("steps", "small", "lr", "rate")}
    key = digest("experts-5", texts.fingerprint, way, seed, shaping, torch.__version__)
    kept: Document | None = cache.get("experts-results", key)
    if kept is not None and not (given.out and way == "bias" and seed == given.seeds[0]):
        return kept
    model, balance = initialised(small(given, way, seed)), Balance()
    config = TrainConfig(steps=given.steps, lr=given.lr, schedule="cosine", precision="fp32", weight_decay=0.1, seed=seed)
    loss, batches = language_loss(), WindowBatches(texts.windows, SIZE, seed=seed)
    result = train(model, batches, balanced(loss), config, callbacks=[balance], progress=progress, identity=key)
    with torch.no_grad():
        tested = [float(loss(model, next_tokens(texts.tests[at : at + SIZE]))) for at in range(0, len(texts.tests) - SIZE + 1, SIZE)]
    experts = [layer.experts for layer in layers_of(model)]
    total = sum(one.numel() for one in model.parameters())
    routed = sum(one.numel() for every in experts for one in every.parameters())
    found: Document = {"loss": float(np.mean(tested)), "seconds": result.seconds, "total": total, "active": total - routed + routed * ACTIVE // EXPERTS}
    found["imbalance"] = result.metrics.get("imbalance")
    if way == "bias" and seed == given.seeds[0]:
        windows = domain_windows(texts.held_out, texts.tokenizer, LENGTH, 32)
        best = expert_use(model, windows).strongest
        test = best.dependence
        found["specialisation"] = {"layer": best.name, "bits": test.bits, "chance": test.mean_chance, "p": test.p_family}
        if given.out:
            save_model(as_model(model), given.out)
            texts.tokenizer.save(str(given.out / "tokenizer.json"))
    cache.put("experts-results", key, found)
    return found


def figure(values: Sequence[float]) -> Document:
    """The mean with the lowest and the highest."""
    return {"value": float(np.mean(values)), "low": min(values), "high": max(values)}


def quality(given: argparse.Namespace, progress: Progress) -> Document:
    """All ways and seeds."""
    texts, cache = Texts(given.steps, progress), Cache()
    found = {way: [learned(given, texts, way, seed, cache, progress) for seed in given.seeds] for way in ("dense", "bias", "switch")}
    rows = []
    for way, runs in found.items():
        loads = [one["imbalance"] for one in runs if one["imbalance"] is not None]
        middle = float(np.mean([one["seconds"] for one in runs]))
        rows.append({"name": way, "active": runs[0]["active"], "total": runs[0]["total"], "loss": figure([one["loss"] for one in runs]), "seconds": middle})
        rows[-1]["imbalance"] = max(loads) if loads else None
    worse = [one["loss"] - other["loss"] for one, other in zip(found["bias"], found["dense"], strict=True)]
    return {
        "tokens": given.steps * SIZE * LENGTH,
        "rows": rows,
        "worse": figure(worse),
        "imbalance": figure([one["imbalance"] for one in found["bias"]]),
        "specialisation": found["bias"][0].get("specialisation"),
    }


def table(document: Document) -> str:
    """The document as Markdown."""
    lines = []
    if document["decode"]:
        rows = []
        for one in document["decode"]:
            pages = "" if one["referenced"] is None else " / ".join(f"{mb:,.0f}" for mb in one["referenced"])
            numbers = [f"{one['dense_ms']:.2f}", f"{one['experts_ms']:.2f}", spread(one["speedup"]), f"{one['dense_mb']:,.1f}", f"{one['experts_mb']:,.1f}"]
            rows.append([one["name"], *numbers, f"{one['saved']:.0f} %", pages])
        head = ["one token", "dense, ms", "experts, ms", "times faster", "dense reads, MB", "experts read, MB", "saved", "pages referenced, MB"]
        lines += [markdown_table(rows, head), ""]
    if document["quality"]:
        held = document["quality"]
        rows = []
        for one in held["rows"]:
            numbers = [f"{one['active']:,}", f"{one['total']:,}", spread(one["loss"], 3), f"{one['seconds']:.0f}"]
            rows.append([one["name"], *numbers, "" if one["imbalance"] is None else f"{one['imbalance']:.2f}"])
        lines += [markdown_table(rows, ["way", "active parameters", "all parameters", "loss, nats a token", "training, s", "max/mean load"]), ""]
        lines.append(f"{held['tokens']:,} tokens each; loss of the experts less that of the dense model, same seed: {spread(held['worse'], 3)}.")
        special = held["specialisation"]
        if special:
            chance = f"{special['chance']:.3f} by chance, p = {special['p']:.3g} over all layers"
            lines.append(f"Layer furthest from chance: {special['bits']:.3f} bits about the domain, {chance}.")
        lines.append("")
    return "\n".join([*lines, made_on(document)])


def main() -> None:
    """Parse, measure, publish."""
    parser = options(__doc__, "experts")
    parser.add_argument("--parts", nargs="+", choices=("decode", "quality"), default=["decode", "quality"])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--small", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    def run(progress: Progress) -> Document:
        with contextlib.suppress(RuntimeError):
            torch.set_num_interop_threads(1)
        decode = decoding(given, progress) if "decode" in given.parts else []
        return {**on(identify()), "decode": decode, "quality": quality(given, progress) if "quality" in given.parts else None}

    publish(given, run, table)


if __name__ == "__main__":
    main()
