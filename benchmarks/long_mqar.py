"""Associative recall learned from scratch with each way of attending: a Llama of two layers, equal data, equal steps, several seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lissome.core.progress import Progress
from lissome.data.long_range import mqar, share_foretold
from lissome.train.batches import LABELS
from lissome.train.config import TrainConfig
from lissome.train.finetune import language_loss
from lissome.train.loop import train
from long_ways import Ways, attending
from publishing import Document

HELD_OUT = 1_000_000
"""Seeds from here on are of the test examples."""


@dataclass(frozen=True)
class Sizes:
    """Of the task, the model and the training. dim: of the model, with heads of 32. size: examples a step."""

    length: int
    pairs: int
    vocabulary: int
    dim: int
    steps: int
    size: int
    lr: float
    tested: int = 256


STAGES = ((0.5, 8), (0.75, 4))
"""Until this share of the steps, examples are so many times shorter, with as many fewer pairs: nothing is learned from long ones alone in so few steps.
Zoology's training examples are of several lengths too."""


class Fresh:
    """New examples at every step, the same for every way of attending; short ones first, as many tokens a step."""

    def __init__(self, sizes: Sizes, seed: int):
        self.sizes, self.seed = sizes, seed

    def __len__(self) -> int:
        return self.sizes.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """Batches from the `start`-th on."""
        for step in range(start, len(self)):
            times = next((times for share, times in STAGES if step < share * len(self)), 1)
            own = dataclasses.replace(self.sizes, length=self.sizes.length // times, pairs=max(1, self.sizes.pairs // times))
            yield batch(own, self.sizes.size * times, (self.seed * 1000 + number) * len(self) + step)


def batch(sizes: Sizes, count: int, seed: int) -> dict[str, torch.Tensor]:
    """input_ids and labels [count, length]."""
    ids, targets = mqar(count, sizes.length, sizes.pairs, sizes.vocabulary, seed)
    return {"input_ids": torch.from_numpy(ids), LABELS: torch.from_numpy(targets)}


def small_llama(sizes: Sizes, seed: int) -> Any:
    """Two layers, fresh weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    heads = sizes.dim // 32
    config = LlamaConfig(
        hidden_size=sizes.dim,
        intermediate_size=2 * sizes.dim,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=sizes.length,
        initializer_range=0.02,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def accuracy(model: Any, sizes: Sizes) -> float:
    """Share of the repeated keys at which the value is foretold, on examples not trained on."""
    shares = []
    for part in range(0, sizes.tested, sizes.size):
        given = batch(sizes, min(sizes.size, sizes.tested - part), HELD_OUT + part)
        shares.append(share_foretold(model(given["input_ids"]).logits.numpy(), given[LABELS].numpy()))
    return float(np.concatenate(shares).mean())


def recalled(ways: Ways, sizes: Sizes, seeds: Sequence[int], progress: Progress) -> list[Document]:
    """Accuracy of every way: the mean over seeds, from the lowest to the highest of them."""
    progress.stage("associative recall from scratch", len(ways) * len(seeds))
    config = TrainConfig(steps=sizes.steps, lr=sizes.lr, schedule="cosine", precision="fp32", weight_decay=0.1)
    rows = []
    for name, pattern in ways.items():
        found = []
        for seed in seeds:
            model = attending(small_llama(sizes, seed), pattern)
            train(model, Fresh(sizes, seed), language_loss(), config.model_copy(update={"seed": seed}))
            found.append(accuracy(model, sizes))
            progress.step(note=f"{name}: {found[-1]:.3f}")
        rows.append({"way": name, "seeds": len(seeds), "accuracy": {"value": float(np.mean(found)), "low": min(found), "high": max(found)}})
    return rows
