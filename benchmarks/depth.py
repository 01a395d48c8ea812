"""Dynamic depth: exits of a classifier at a certified loss, and a decoder that drafts with its own early layers.

    python benchmarks/depth.py [--json] [--write docs/benchmarks.md] [--parts exits path drafts] [--train-trunk] [--minutes 12]

exits: the demo's MiniLM on sentiment gets exits that may cost 0.8 points at 95 %, certified on validation, judged on the test split (`compress.exits`); the
time of 96 validation texts is taken one at a time and 32 at a time, interleaved with the whole model's. path: the same, where the texts' complexity chooses.
Both say what they come to when the limit is not met: the record's own "no" and its nearest yes. drafts: a small Llama-shaped model is trained on the
documentation of Django and SQLAlchemy with layer dropout and losses after its early layers, for `--minutes`; the number of layers and drafts is chosen on
some texts, and greedy decoding of others is timed with and without drafts, interleaved; tokens that differ are counted.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "exits": part, "path": part, "drafts": part}; a part
that was not run is null. exits, path: {"status", "sentence", "nearest": str, "blocks": share run, "drop": figure in points or null, "batch1", "batch32": % of
the time saved, as figures or null, "exits": [{"after", "threshold", "share", "score"}], "seconds": of training}. drafts: {"parameters", "steps", "minutes",
"loss", "layers", "tokens", "head": tokens to choose among (null: all), "accepted": share, "same": share of tokens, "speedup": figure, "plain": tokens/s}. A
figure is {"value", "low", "high", "unit", "n"}.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lissome.compress.exits import ExitsConfig, exit_early
from lissome.compress.exits.decoders import draft_loss
from lissome.compress.exits.run import Exited
from lissome.core.cache import Cache
from lissome.core.progress import Progress
from lissome.data.packing import pack, text_files, texts, token_ids
from lissome.data.sources import fetch
from lissome.data.vocabulary import END, tokenizer_for
from lissome.engines.decoding.engine import Engine
from lissome.engines.decoding.sampling import Sampler, Sampling
from lissome.engines.decoding.speculative import Drafting, Speculative
from lissome.machine.identity import identify
from lissome.machine.interleave import interleave, speedup
from lissome.nn.decoder.modules import from_llama
from lissome.nn.depth.dropout import layer_dropout
from lissome.optimize.demo import sentiment
from lissome.report.markdown import markdown_table
from lissome.train.batches import WindowBatches
from lissome.train.config import TrainConfig
from lissome.train.loop import train
from publishing import Document, made_on, on, options, publish, spread
from publishing import plain as figure

PARTS = ("exits", "path", "drafts")
SOURCES = ("django-docs", "sqlalchemy-docs")
LENGTH, BATCH, VOCABULARY = 128, 16, 4096
SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
EARLY = (1, 2, 3)
"""Numbers of layers that may draft."""
HEADS = (None, 512, 1024)
"""Numbers of the most frequent tokens that a draft may choose among, None: all."""
SAID, PROMPT = 96, 32


def exits_part(given: argparse.Namespace, rule: str, cache: Cache, progress: Progress) -> Document:
    """The classifier."""
    model, task = sentiment(cache, progress)
    frozen = not given.train_trunk or rule == "complexity"
    training = TrainConfig(epochs=1, lr=1e-3 if frozen else 1e-4, precision="fp32" if frozen else "auto")
    _, found = exit_early(model, task, ExitsConfig(rule=rule, frozen=frozen, train=training, seconds=given.seconds), cache, progress)
    return summary(found)


def summary(found: Exited) -> Document:
    """What the documents keep of a record."""
    times = {name.replace(" ", ""): figure(one) for name, one in found.saved.items()}
    kept = {name: getattr(found, name) for name in ("status", "sentence", "nearest", "blocks", "seconds")}
    exits = [dataclasses.asdict(one) for one in found.exits]
    return {**kept, "exits": exits, "drop": figure(found.drop), "batch1": times.get("batch1"), "batch32": times.get("batch32")}


class Language:
    """The corpus in windows, and its tokenizer."""

    def __init__(self, cache: Cache, progress: Progress):
        documents = [text for name in SOURCES for text in texts(text_files(fetch(name, cache, progress), name))]
        order = np.random.default_rng(0).permutation(len(documents))
        held = len(documents) // 20
        self.tokenizer = tokenizer_for([documents[i] for i in order[held:]], VOCABULARY, cache=cache)
        end = self.tokenizer.token_to_id(END)
        ids = [token_ids((documents[i] for i in part), self.tokenizer) for part in (order[held:], order[:held])]
        self.train, self.other = ([window.ids for window in pack(one, LENGTH, end)] for one in ids)
        self.frequent = np.bincount(np.concatenate(self.train), minlength=VOCABULARY).argsort(kind="stable")[::-1].tolist()


def llama() -> Any:
    """The model before it has learned."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=512, tie_word_embeddings=True, **SHAPE))


def learned(language: Language, minutes: float, progress: Progress) -> tuple[Any, int, float, float]:
    """The model trained for about so long, with its steps, loss and minutes."""
    model, loss, batches = llama(), draft_loss(EARLY, 0.5), WindowBatches(language.train, BATCH)
    taken = []
    for batch in itertools.islice(batches.epoch(0), 4):
        begun = time.perf_counter()
        loss(model.train(), batch).backward()
        taken.append(time.perf_counter() - begun)
    model.zero_grad(set_to_none=True)
    steps = max(20, int(60 * minutes / (1.1 * statistics.median(taken[1:]))))
    config = TrainConfig(steps=steps, lr=2e-3, warmup=0.1, schedule="cosine", weight_decay=0.05, precision="auto", spend=60 * minutes)
    with layer_dropout(model, 0.1):
        result = train(model, batches, loss, config, progress=progress)
    return model.eval(), result.steps, statistics.fmean(row["loss"] for row in result.history[-10:]), result.seconds / 60


def said(reader: Any, sampler: Any, prompt: Sequence[int]) -> list[int]:
    """So many tokens after a prompt, whatever they are."""
    kept, logits = list(prompt), reader.read(list(prompt))
    for _ in range(SAID):
        kept.append(sampler.draw(logits, kept))
        logits = reader.read([kept[-1]], start=len(kept) - 1)
    return kept[len(prompt) :]


def best_drafting(engine: Engine, frequent: list[int], prompts: list[list[int]], progress: Progress) -> Drafting:
    """The quickest of all numbers of layers, drafts and tokens to choose among on these prompts."""
    grid = itertools.product(EARLY, (2, 3, 5, 7), (0.0, 0.4), HEADS)
    ways = [Drafting(layers=layers, tokens=tokens, least=least, head=head) for layers, tokens, least, head in grid]
    progress.stage("choosing how to draft", len(ways))
    seconds = []
    for way in ways:
        drafts = Speculative(engine, Sampler(Sampling()), way, frequent=frequent)
        begun = time.perf_counter()
        for prompt in prompts:
            said(drafts, drafts, prompt)
        seconds.append(time.perf_counter() - begun)
        progress.step(1, f"{way.layers} layers, {way.tokens} drafts")
    return ways[int(np.argmin(seconds))]


def drafts_part(given: argparse.Namespace, cache: Cache, progress: Progress) -> Document:
    """The decoder."""
    language = Language(cache, progress)
    model, steps, loss, minutes = learned(language, given.minutes, progress)
    engine = Engine(from_llama(model), language.tokenizer, capacity=PROMPT + SAID + 16)
    prompts = [window[:PROMPT].tolist() for window in language.other[: 4 + given.texts]]
    way = best_drafting(engine, language.frequent, prompts[:4], progress)
    drafts, plain, some = Speculative(engine, Sampler(Sampling()), way, frequent=language.frequent), Sampler(Sampling()), prompts[4:]
    pairs = [(said(engine, plain, one), said(drafts, drafts, one)) for one in some]
    same = [a == b for one, other in pairs for a, b in zip(one, other, strict=True)]
    progress.stage("timing with and without drafts")
    works = {"plain": lambda: [said(engine, plain, one) for one in some], "drafts": lambda: [said(drafts, drafts, one) for one in some]}
    taken = interleave(works, given.seconds * 4)
    return {
        "parameters": sum(one.numel() for one in model.parameters()),
        "steps": steps,
        "minutes": minutes,
        "loss": loss,
        "layers": way.layers,
        "tokens": way.tokens,
        "head": way.head,
        "accepted": drafts.accepted / max(1, drafts.drafted),
        "same": float(np.mean(same)),
        "speedup": figure(speedup(taken["plain"], taken["drafts"], identify().fingerprint)),
        "plain": len(some) * SAID / statistics.median(taken["plain"]),
    }


def run(given: argparse.Namespace, progress: Progress) -> Document:
    """The whole benchmark as its JSON document."""
    cache = Cache()
    document: Document = on(identify()) | dict.fromkeys(PARTS)
    for part, rule in (("exits", "max-probability"), ("path", "complexity")):
        if part in given.parts:
            document[part] = exits_part(given, rule, cache, progress)
    if "drafts" in given.parts:
        document["drafts"] = drafts_part(given, cache, progress)
    return document


def table(document: Document) -> str:
    """The classifier's two ways, the decoder's sentence, and the machine."""
    parts = []
    rows = []
    for name, said_ in (("confidence", document["exits"]), ("complexity", document["path"])):
        if said_:
            where = ", ".join(f"{100 * one['share']:.0f} % after {one['after']}" for one in said_["exits"])
            times = [spread(said_[one], 1) for one in ("batch1", "batch32")]
            rows.append([name, said_["status"], spread(said_["drop"]), f"{100 * said_['blocks']:.0f} %", *times, where])
            parts.append(f"{name}: {said_['sentence']} {said_['nearest']}".strip())
    if rows:
        head = ["exits by", "", "drop, pt", "blocks run", "time saved at batch 1, %", "at batch 32, %", "inputs leave"]
        parts.insert(0, markdown_table(rows, head))
    drafts = document["drafts"]
    if drafts:
        among = f" out of the {drafts['head']:,} most frequent" if drafts["head"] else ""
        stands, same = f"{100 * drafts['accepted']:.0f} %", f"{100 * drafts['same']:.2f} %"
        parts.append(
            f"Drafts: {drafts['parameters'] / 1e6:.1f}M parameters trained for {drafts['steps']} steps in {drafts['minutes']:.1f} minutes; {drafts['layers']} "
            f"of {SHAPE['num_hidden_layers']} layers draft {drafts['tokens']} tokens{among}, {stands} of which stand; {same} of the text's tokens are those of "
            f"plain decoding, which says {drafts['plain']:.0f} tokens/s. Speed-up {spread(drafts['speedup'])}."
        )
    return "\n\n".join([*parts, made_on(document)])


def main() -> None:
    """Read the options, run, print, write."""
    parser = options(__doc__, "depth")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--train-trunk", action="store_true", help="train the whole classifier with its exits")
    parser.add_argument("--minutes", type=float, default=12, help="that the decoder is trained")
    parser.add_argument("--texts", type=int, default=6, help="texts that decoding is timed on")
    parser.add_argument("--seconds", type=float, default=20, help="that a timing takes")
    given = parser.parse_args()
    publish(given, lambda progress: run(given, progress), table)


if __name__ == "__main__":
    main()
