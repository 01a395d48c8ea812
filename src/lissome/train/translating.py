"""Training a translator and translating with it: batches of documents of like length, the loss, and greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lissome.core.errors import BadConfig, BadTask
from lissome.train.batches import LABELS
from lissome.train.loop import Loss

if TYPE_CHECKING:
    import tokenizers

IGNORE = -100
"""The label of padding (torch's ignore index)."""
Encoded = tuple[list[int], list[int]]
"""Ids of a source and of its target, both ended."""


def encoded(texts: Sequence[tuple[str, str]], tokenizer: tokenizers.Tokenizer, end: int) -> list[Encoded]:
    """(source, target) texts as ids, each ended by `end`."""
    sources, targets = (tokenizer.encode_batch([pair[side] for pair in texts]) for side in (0, 1))
    return [([*source.ids, end], [*target.ids, end]) for source, target in zip(sources, targets, strict=True)]


class TranslationBatches:
    """Shuffled batches of pairs of like length, of at most `tokens` positions a side, padding included; the order is a pure function of seed and epoch."""

    def __init__(self, pairs: Sequence[Encoded], tokens: int, *, pad: int = 0, seed: int = 0, bucket: int = 50):
        if not pairs:
            raise BadTask("there are no pairs to train on.", do="give some, or longer documents")
        longest = max(max(map(len, pair)) for pair in pairs)
        if longest > tokens:
            raise BadConfig(f"a pair of {longest} tokens does not fit a batch of {tokens}.", expected=f"at least {longest} tokens a batch")
        self.pairs, self.tokens, self.pad, self.seed, self.bucket = pairs, tokens, pad, seed, bucket
        self.lengths = np.array([max(map(len, pair)) for pair in pairs])

    def __len__(self) -> int:
        return len(self.rows(0))

    def epoch(self, number: int, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of epoch `number`, from the `start`-th on."""
        for rows in self.rows(number)[start:]:
            yield batch_of([self.pairs[i] for i in rows], self.pad)

    def rows(self, number: int) -> list[list[int]]:
        """Which pairs the batches of epoch `number` hold: shuffled, sorted by length within stretches, cut, and the batches shuffled."""
        generator = np.random.default_rng([self.seed, number])
        order = generator.permutation(len(self.pairs))
        stretch = max(1, self.bucket * self.tokens // int(self.lengths.mean()))
        found: list[list[int]] = []
        for at in range(0, len(order), stretch):
            part = order[at : at + stretch]
            found.extend(self._cut([int(i) for i in part[np.argsort(self.lengths[part], kind="stable")]]))
        return [found[i] for i in generator.permutation(len(found))]

    def _cut(self, order: list[int]) -> Iterator[list[int]]:
        held: list[int] = []
        for i in order:  # ascending, so the newest is the longest
            if held and self.lengths[i] * (len(held) + 1) > self.tokens:
                yield held
                held = []
            held.append(i)
        if held:
            yield held


def batch_of(pairs: Sequence[Encoded], pad: int = 0) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask [n, longest source] and labels [n, longest target], padded on the right."""
    inputs = _padded([source for source, _ in pairs], pad)
    real = _padded([[1] * len(source) for source, _ in pairs], 0)
    return {"input_ids": inputs, "attention_mask": real, LABELS: _padded([target for _, target in pairs], IGNORE)}


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    out = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return out


def translation_loss(label_smoothing: float = 0.1) -> Loss:
    """Cross-entropy of the next target token, mean over tokens, with the target smoothed over the vocabulary (Szegedy et al. 2016)."""

    def loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = batch[LABELS]
        config: Any = module.config
        pad: int = config.pad_token_id
        begun = functional.pad(labels[:, :-1], (1, 0), value=pad)  # each token is foretold from those before it
        logits = module(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], decoder_input_ids=begun.masked_fill(begun == IGNORE, pad), use_cache=False
        ).logits
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, label_smoothing=label_smoothing)

    return loss


@torch.no_grad()
def translate(
    model: Any,
    tokenizer: tokenizers.Tokenizer,
    sources: Sequence[str],
    *,
    end: int,
    pad: int = 0,
    most: int = 512,
    size: int = 32,
    step: Callable[[], None] | None = None,
) -> list[str]:
    """The greedy translation of each source, at most `most` tokens; batches of `size` sources of like length. step: called after each batch."""
    ids = [[*one.ids, end] for one in tokenizer.encode_batch(list(sources))]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found = [""] * len(ids)
    model.eval()
    for at in range(0, len(order), size):
        rows = order[at : at + size]
        batch = batch_of([(ids[i], [end]) for i in rows], pad)
        out = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=most, do_sample=False, num_beams=1, use_cache=True
        )
        for i, row in zip(rows, out.tolist(), strict=True):
            said = row[1:]  # the first is what the decoder begins with
            said = said[: said.index(end)] if end in said else said
            found[i] = tokenizer.decode([token for token in said if token != pad], skip_special_tokens=True)
        if step is not None:
            step()
    return found
