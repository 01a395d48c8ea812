"""What a decoder loses on long inputs when it sees less: attention mass kept, perplexity by position, passkeys found."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lissome.core.progress import Progress
from lissome.core.statistics import proportion_interval
from lissome.data.long_range import passkey
from lissome.data.packing import IGNORED, pack, token_ids
from lissome.data.recent import recent_text
from lissome.data.tokens import open_tokenizer
from lissome.nn.attention.in_transformers import mask
from lissome.nn.attention.mass import kept
from lissome.nn.attention.patterns import Pattern, Sight, select
from lissome.nn.attention.written import parse
from lissome.nn.likelihood import hidden_states, parts_of, window_log_likelihoods
from long_ways import DENSE, ORACLE, Ways, attending
from publishing import Document

SEGMENT = 64
"""Tokens whose mean is one observation: neighbours are foretold alike, so single tokens would make the interval too narrow."""
RESAMPLES = 2000


def windows(folder: Path, length: int, count: int) -> torch.Tensor:
    """The first `count` windows of the recent text [count, length], documents in an order of lot that is always the same."""
    tokenizer, _ = open_tokenizer(folder, str(folder))
    documents = list(recent_text().values())
    order = np.random.default_rng(0).permutation(len(documents))
    separator = tokenizer.token_to_id("<|endoftext|>")
    packed = pack(token_ids((documents[i] for i in order), tokenizer), length, separator)
    found = [window.ids for window, _ in zip(packed, range(count), strict=False)]
    return torch.from_numpy(np.stack(found)).long()


class Recall:
    """An attention function for transformers that attends densely and notes what each pattern would have kept of it, head by head."""

    def __init__(self, patterns: dict[str, Pattern], rows: torch.Tensor):
        self.patterns, self.rows = patterns, rows
        self.shares: dict[str, list[torch.Tensor]] = {name: [] for name in patterns}

    def __call__(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, scaling: float | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """Dense attention, [batch, queries, heads, dim]."""
        length = query.shape[2]
        sight = Sight(length, length, heads=query.shape[1], q=query, k=key)
        for name, pattern in self.patterns.items():
            self.shares[name].append(kept(sight, select(pattern, sight), self.rows, scaling).mean((0, 2)))
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None


@torch.no_grad()
def recall(model: Any, folder: Path, ways: Ways, length: int, count: int, sampled: int, progress: Progress) -> list[Document]:
    """Share of dense attention's weight on the keys that each way shows: over layers, heads, texts and sampled queries of the second half of a text.

    Inputs of every layer are the dense model's. worst: the mean of the twentieth of the heads that lose most.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    rows = torch.from_numpy(np.sort(np.random.default_rng(0).choice(np.arange(length // 2, length), min(sampled, length // 2), replace=False)))
    recorder = Recall({name: parse(text) for name, text in ways.items() if text is not None}, rows)
    AttentionInterface.register("recall", recorder)
    AttentionMaskInterface.register("recall", mask)
    model.set_attn_implementation("recall")
    texts = windows(folder, length, count)
    progress.stage("recall of attention", len(texts))
    for text in texts:
        hidden_states(model.model, {"input_ids": text[None]})
        progress.step()
    heads = {name: torch.stack(shares).view(len(texts), -1).mean(0) for name, shares in recorder.shares.items()}  # [layers * heads]
    return [
        {
            "way": name,
            "tokens": length,
            "texts": len(texts),
            "kept": float(found.mean()),
            "worst": float(found.sort().values[: max(1, len(found) // 20)].mean()),
            "of_oracle": float(found.mean() / heads[ORACLE].mean()),
        }
        for name, found in heads.items()
    ]


@torch.no_grad()
def perplexity(model: Any, folder: Path, ways: Ways, length: int, count: int, edges: Sequence[int], progress: Progress) -> list[Document]:
    """Perplexity on text of 2026 by where a token stands and over all, and as a multiple of the dense model's on the same tokens, with its interval at 95 %."""
    texts = windows(folder, length, count)
    progress.stage("perplexity by position", len(ways))
    found = {}
    for name, pattern in ways.items():
        attending(model, pattern)
        found[name] = torch.cat([window_log_likelihoods(model, {"input_ids": text[None]}) for text in texts]).double().numpy()  # [texts, length - 1]
        progress.step(note=name)
    rows = []
    bounds = sorted({0, *(edge for edge in edges if edge < length), length})
    for begin, end in [*itertools.pairwise(bounds), *([(0, length)] if len(bounds) > 2 else [])]:
        for name, values in found.items():
            here = slice(max(begin - 1, 0), end - 1)  # entry i is the likelihood of token i + 1
            loss = found[DENSE][:, here] - values[:, here]
            rows.append(
                {
                    "name": f"{name}, {begin} to {end}",
                    "way": name,
                    "from": begin,
                    "to": end,
                    "texts": len(texts),
                    "perplexity": float(np.exp(-values[:, here].mean())),
                    "times_dense": multiple(loss),
                }
            )
    return rows


def multiple(loss: np.ndarray) -> Document:
    """exp of the mean of log-likelihoods lost [texts, tokens], its interval by resampling segments of the texts (percentile bootstrap, seeded)."""
    cut = [piece.mean() for text in loss for piece in np.array_split(text, max(1, len(text) // SEGMENT))]
    values, rng = np.array(cut), np.random.default_rng(0)
    drawn = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.exp(np.quantile(drawn, [0.025, 0.975]))
    return {"value": float(np.exp(loss.mean())), "low": float(low), "high": float(high)}


@torch.no_grad()
def passkeys(model: Any, folder: Path, ways: Ways, lengths: Sequence[int], depths: Sequence[float], count: int, progress: Progress) -> list[Document]:
    """Share of the passkeys of which greedy decoding says all five digits, `count` texts for each length and depth, with its interval at 95 %."""
    tokenizer, _ = open_tokenizer(folder, str(folder))
    parts = parts_of(model)
    assert parts is not None
    trunk, head = parts
    progress.stage("passkeys", len(ways) * len(lengths) * len(depths))
    rows = []
    for name, pattern in ways.items():
        attending(model, pattern)
        for length in lengths:
            for depth in depths:
                hits = 0
                for seed in range(count):
                    ids, targets = (torch.from_numpy(one) for one in passkey(tokenizer, length, depth, seed))
                    asked = targets != IGNORED
                    said = head(hidden_states(trunk, {"input_ids": ids[None]})[0, asked]).argmax(-1)
                    hits += int(bool((said == targets[asked]).all()))
                value, low, high = proportion_interval(hits, count)
                rows.append({"way": name, "tokens": length, "depth": depth, "texts": count, "found": {"value": value, "low": low, "high": high}})
                progress.step(note=f"{name}, {length} tokens")
    return rows


def whole(rows: Sequence[Document]) -> list[Document]:
    """Passkeys found over all lengths and depths by each way, with the interval at 95 %, and the share that dense attention finds beyond that."""
    found = []
    for name in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == name]
        texts = sum(row["texts"] for row in own)
        value, low, high = proportion_interval(round(sum(row["found"]["value"] * row["texts"] for row in own)), texts)
        found.append({"name": name, "way": name, "texts": texts, "found": {"value": value, "low": low, "high": high}})
    return [row | {"fewer": found[0]["found"]["value"] - row["found"]["value"]} for row in found]
