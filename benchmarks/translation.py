"""Translation from English to German with sparse attention against dense, trained alike, on the message catalogues of Debian packages.

    python benchmarks/translation.py [--json] [--write docs/benchmarks.md] [--messages 6000] [--steps 300] [--tokens 512] [--window 64] [--globals 8]
        [--width 256] [--layers 3] [--vocabulary 4096] [--documents 200] [--lengths 512 1024 2048 4096] [--rounds 7]

An encoder-decoder learns single messages of up to `--window` tokens first: there a window shows everything, both ways are the same model, and it is trained
once. From there it is trained twice on messages joined to documents of up to `--tokens` tokens, the same batches in the same order: once its self-attention is
dense, once a window and tokens that lie evenly. BLEU is sacreBLEU's over greedy translations of the test split's documents, a document counting as one
segment; the interval of the difference comes from drawing documents, the same for both. Speed is that of untrained models of the same sizes, one document a
batch without padding, interleaved: a training step (forward and backward) and the encoder's forward.
Needs the extra "translation". What was trained and translated is kept, so that a run that was stopped goes on.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "pattern": str, "parameters": int, "messages": int and
"steps": int (updates on single messages and on documents), "tokens": int, "train_pairs": int, "documents": int, "signature": sacreBLEU's, "drop": {"value",
"low", "high", "unit": "BLEU", "n"}, "encoder": figure and "step": figure at the trained length, "rows": [{"name": "dense" | "sparse", "bleu": float, "loss":
float, "said": first translations}], "speed": [{"tokens": int, "pass": "training step" | "encoder", "dense_p50": ms, "sparse_p50": ms, "speedup": figure}]}
with figure = {"value", "low", "high"}. drop: BLEU of dense less that of sparse. speedup: dense over sparse in the same round, median with its interval at 95 %.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from attention import timed
from lissome.core.cache import Cache, digest
from lissome.core.errors import MissingExtra
from lissome.core.progress import Progress
from lissome.core.statistics import median_interval, paired_difference
from lissome.data.catalogues import Corpus, Pair, corpus, pack
from lissome.data.vocabulary import END, PAD, tokenizer_for
from lissome.machine.identity import identify
from lissome.nn.translation import TranslatorConfig, local_global, translator
from lissome.report.markdown import markdown_table
from lissome.train.config import TrainConfig
from lissome.train.loop import TrainResult, train
from lissome.train.translating import TranslationBatches, batch_of, encoded, translate, translation_loss
from publishing import Document, made_on, on, options, publish, spread

STRETCH = 100
"""Neighbouring messages that stay in one split, so that the test has messages of all programs: whole catalogues would leave one program for it."""
SMALL, LARGE = 1024, 2048
"""Positions of a batch, a side: of single messages, for many updates, and of documents."""
LOSS = translation_loss(0.1)


class Setting:
    """What both ways share: the corpus, the tokenizer, the course of batches and the test's documents."""

    def __init__(self, given: argparse.Namespace, cache: Cache, progress: Progress):
        self.given, self.cache, self.progress = given, cache, progress
        held: Corpus = corpus(cache, progress, stretch=STRETCH)
        texts = held.splits["train"]
        progress.stage("learn the vocabulary")
        self.tokenizer = tokenizer_for([side for pair in texts for side in pair[:2]], given.vocabulary, cache=cache)
        self.pad, self.end = self.tokenizer.token_to_id(PAD), self.tokenizer.token_to_id(END)
        self.messages = texts
        whole = list({side for part in held.splits.values() for pair in part for side in pair[:2]})
        self.counts = {text: len(one.ids) for text, one in zip(whole, self.tokenizer.encode_batch(whole), strict=True)}
        progress.stage("join the documents")
        room = given.tokens - 1  # for what ends each
        self.documents = pack(texts, self.count, room)
        self.test = some_of(pack(held.splits["test"], self.count, room), given.documents)
        self.pattern = local_global(given.window, given.globals, given.tokens)
        self.single = TranslationBatches(self.ids(texts, given.window), SMALL, pad=self.pad)
        mixed = [*self.documents, *pack(texts, self.count, given.tokens // 4 - 1)]
        self.joined = TranslationBatches(self.ids(mixed, given.tokens), max(LARGE, given.tokens), pad=self.pad, seed=1)
        shaping = ("tokens", "window", "width", "layers", "vocabulary", "lr", "messages")
        self.identity = digest(held.fingerprint, {name: getattr(given, name) for name in shaping}, (SMALL, LARGE), torch.__version__)

    def count(self, text: str) -> int:
        """Tokens of a message."""
        return self.counts[text]

    def ids(self, pairs: Sequence[Pair], most: int) -> list[tuple[list[int], list[int]]]:
        """Pairs as ids, without those that end up longer than `most`."""
        return [pair for pair in encoded([(one.source, one.target) for one in pairs], self.tokenizer, self.end) if max(map(len, pair)) <= most]

    def config(self, pattern: str | None, length: int) -> TranslatorConfig:
        """The translator's sizes."""
        given = self.given
        sizes = {"width": given.width, "heads": max(1, given.width // 64), "layers": given.layers, "inner": 4 * given.width}
        return TranslatorConfig(vocabulary=given.vocabulary, length=length, pad=self.pad, end=self.end, pattern=pattern, **sizes)

    def length(self) -> int:
        """Positions of a trained model: its longest document, and a margin for what it says."""
        return int(self.given.tokens * 1.25)


def some_of(documents: list[Pair], count: int) -> list[Pair]:
    """`count` of the documents, evenly over all of them; 0: all."""
    picked = np.linspace(0, len(documents) - 1, min(count or len(documents), len(documents))).round().astype(int)
    return [documents[i] for i in picked]


def taught(setting: Setting, model: Any, batches: TranslationBatches, steps: int, name: str, key: str) -> TrainResult:
    """`model` trained in place on `batches`; what a stopped run had done is gone on from."""
    config = TrainConfig(steps=steps, lr=setting.given.lr, warmup=0.05, schedule="cosine", precision="fp32", seed=0)
    setting.progress.say(f"{name}: {steps} steps")
    return train(model, batches, LOSS, config, resume=setting.cache.path("translation-runs", key), progress=setting.progress, identity=key)


def on_messages(setting: Setting) -> dict[str, torch.Tensor]:
    """The weights that both ways go on from."""
    model = translator(setting.config(None, setting.length()))
    taught(setting, model, setting.single, setting.given.messages, "single messages", digest(setting.identity, "messages"))
    return dict(model.state_dict())


def learned(setting: Setting, name: str, pattern: str | None, begun: dict[str, torch.Tensor]) -> dict[str, Any]:
    """One way, trained and tested: its BLEU's sums per document and its loss."""
    key = digest(setting.identity, setting.given.steps, pattern)
    tested = digest(key, setting.given.documents)
    kept: dict[str, Any] | None = setting.cache.get("translation-results", tested)
    if kept is not None:
        return kept
    model = translator(setting.config(pattern, setting.length()))
    model.load_state_dict(begun)
    result = taught(setting, model, setting.joined, setting.given.steps, f"documents, {name}", key)
    setting.progress.stage(f"{name}: translate {len(setting.test)} documents", -(-len(setting.test) // 32))
    sources = [pair.source for pair in setting.test]
    said = translate(model, setting.tokenizer, sources, end=setting.end, pad=setting.pad, most=int(setting.given.tokens * 1.2), step=setting.progress.step)
    found = {
        "sums": bleu_sums(said, [pair.target for pair in setting.test]),
        "loss": statistics.fmean(row["loss"] for row in result.history[-10:]),
        "said": said[:3],
        "parameters": sum(one.numel() for one in model.parameters()),
    }
    setting.cache.put("translation-results", tested, found)
    return found


@functools.cache
def bleu() -> Any:
    """sacreBLEU's metric."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise MissingExtra("sacrebleu", "translation", "BLEU") from error
    return BLEU()


def bleu_sums(said: Sequence[str], meant: Sequence[str]) -> list[list[float]]:
    """What every document adds to corpus BLEU: matching n-grams and n-grams of lengths 1..4, and both lengths in tokens."""
    metric, rows = bleu(), []
    for one, reference in zip(said, meant, strict=True):
        score = metric.corpus_score([one], [[reference]])
        rows.append([*map(float, score.counts), *map(float, score.totals), float(score.sys_len), float(score.ref_len)])
    return rows


def bleu_of(sums: Any) -> float:
    """Corpus BLEU from the sums over documents [10]."""
    parts = [round(float(one)) for one in sums]
    return float(bleu().compute_bleu(correct=parts[:4], total=parts[4:8], sys_len=parts[8], ref_len=parts[9], smooth_method="exp").score)


def calls(setting: Setting, length: int) -> dict[str, dict[str, Callable[[], object]]]:
    """By pass and way, one call of untrained models on one document of `length` tokens a side."""
    pattern = local_global(setting.given.window, setting.given.globals, length)
    models = {name: translator(setting.config(one, length)) for name, one in (("dense", None), ("sparse", pattern))}
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randint(3, setting.given.vocabulary, (length,), generator=generator).tolist() for _ in range(2))
    batch = batch_of([(source, target)], setting.pad)
    return {
        "training step": {name: lambda model=model: LOSS(model.train(), batch).backward() for name, model in models.items()},
        "encoder": {name: lambda model=model: encoder_forward(model.eval(), batch["input_ids"]) for name, model in models.items()},
    }


def speeds(setting: Setting, lengths: Sequence[int], rounds: int) -> list[Document]:
    """Training steps and the encoder's forward of both ways at each length, interleaved."""
    rows = []
    for length in lengths:
        for kind, ways in calls(setting, length).items():
            setting.progress.stage(f"{kind}, {length} tokens", rounds + 1)
            times = timed(ways, rounds, setting.progress)
            value, low, high = median_interval([dense / own for dense, own in zip(times["dense"], times["sparse"], strict=True)])
            p50 = {f"{name}_p50": statistics.median(taken) for name, taken in times.items()}
            rows.append({"tokens": length, "pass": kind, **p50, "speedup": {"value": value, "low": low, "high": high}})
    return rows


@torch.no_grad()
def encoder_forward(model: Any, ids: torch.Tensor) -> None:
    """One pass of the encoder."""
    model.get_encoder()(ids)


def run(given: argparse.Namespace, progress: Progress) -> Document:
    """The whole benchmark as its JSON document."""
    bleu()  # before anything is trained
    setting = Setting(given, Cache(), progress)
    begun = on_messages(setting)
    found = {name: learned(setting, name, pattern, begun) for name, pattern in (("dense", None), ("sparse", setting.pattern))}
    value, low, high = paired_difference(np.array(found["dense"]["sums"]), np.array(found["sparse"]["sums"]), bleu_of)
    speed = speeds(setting, sorted({*given.lengths, given.tokens}), given.rounds)
    rows = [{"name": name, "bleu": bleu_of(np.array(one["sums"]).sum(0)), "loss": one["loss"], "said": one["said"]} for name, one in found.items()]
    trained = {row["pass"]: row["speedup"] for row in speed if row["tokens"] == given.tokens}
    return on(identify()) | {
        "pattern": setting.pattern,
        "parameters": found["dense"]["parameters"],
        "messages": given.messages,
        "steps": given.steps,
        "tokens": given.tokens,
        "train_pairs": len(setting.messages),
        "documents": len(setting.test),
        "signature": signature(),
        "drop": {"value": value, "low": low, "high": high, "unit": "BLEU", "n": len(setting.test)},
        "encoder": trained["encoder"],
        "step": trained["training step"],
        "rows": rows,
        "speed": speed,
    }


def signature() -> str:
    """How BLEU was computed, in sacreBLEU's words."""
    metric = bleu()
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())


def table(document: Document) -> str:
    """What was trained, two tables, and the machine."""
    quality = [[row["name"], f"{row['bleu']:.2f}", f"{row['loss']:.3f}"] for row in document["rows"]]
    speed = [[f"{r['tokens']:,}", r["pass"], f"{r['dense_p50']:.1f}", f"{r['sparse_p50']:.1f}", spread(r["speedup"])] for r in document["speed"]]
    text = (
        f"{document['parameters'] / 1e6:.1f}M parameters, {document['train_pairs']:,} messages to learn from, {document['messages']:,} steps on them, "
        f"then {document['steps']:,} each way on documents of up to {document['tokens']} tokens; sparse is `{document['pattern']}`. BLEU lost: "
        f"{spread(document['drop'])} over {document['documents']} documents of the test split ({document['signature']})."
    )
    learned_table = markdown_table(quality, ["attention", "BLEU", "loss at the end"])
    speed_table = markdown_table(speed, ["tokens", "pass", "dense p50, ms", "sparse p50, ms", "times dense"])
    return f"{text}\n\n{learned_table}\n\n{speed_table}\n\n{made_on(document)}"


def main() -> None:
    """Run, print, and write the tables into the docs when asked."""
    parser = options(__doc__, "translation")
    parser.add_argument("--messages", type=int, default=6000, help="updates on single messages, which both ways share")
    parser.add_argument("--steps", type=int, default=300, help="updates of each way on documents")
    parser.add_argument("--tokens", type=int, default=512, help="of a document, a side")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--globals", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--documents", type=int, default=200, help="of the test split; 0: all")
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 2048, 4096], help="beside that of the documents, to time")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    publish(given, lambda progress: run(given, progress), table)


if __name__ == "__main__":
    main()
