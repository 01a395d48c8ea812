"""Variations of a batch's texts: more for a student to learn from than the examples there are, as the teacher answers any text.

A student that sees only the texts that its teacher was fitted to learns little more than their labels. TinyBERT (Jiao et al. 2020) and Tang et al.
(2019) teach on altered texts too; what is altered here needs no second model: tokens are replaced by others of the batch, and texts are spliced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from lissome.compress.distill.examples import mask_of
from lissome.core.errors import BadInput
from lissome.train.batches import LABELS, Ordered

REPLACED = 0.15
"""Share of an altered text's tokens that are replaced (Tang et al. 2019 mask 0.1 and replace 0.1)."""
IGNORED = -100
"""The label that counts as none (torch's ignore index)."""


class Varied:
    """`batches` with a `share` of each batch's rows altered: what is altered has no label any more. A pure function of seed, epoch and batch.

    Altered are batches of token ids with an attention mask [batch, length]: half the rows go on from a random place with another row's tokens, and
    tokens are replaced by others of the batch; the first and the last token, which are special ones as a rule, stay. Raises BadInput for other batches.
    """

    def __init__(self, batches: Ordered, share: float, seed: int = 0):
        self.batches, self.share, self.seed = batches, share, seed

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        """Batches of epoch `number` from the `start`-th on."""
        for i, batch in enumerate(self.batches.epoch(number, start), start):
            yield varied(batch, self.share, np.random.default_rng([self.seed, number, i]))


def varied(batch: Any, share: float, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """A copy of `batch` with about `share` of its rows altered, but never all of them."""
    mask = mask_of(batch)
    if mask is None or not isinstance(batch, Mapping) or "input_ids" not in batch:
        raise BadInput("variations are made of token ids with an attention mask, and the batch has none.", do="set variations to 0")
    rows = np.flatnonzero(rng.random(len(mask)) < share)[: len(mask) - 1]
    changed = {name: value.clone() for name, value in batch.items()}
    if not len(rows):
        return changed
    _splice(changed, rows, mask, rng)
    _replace(changed["input_ids"], changed["attention_mask"].bool(), rows, rng)
    labels = changed.get(LABELS)
    if labels is not None and not labels.is_floating_point():
        labels[rows] = IGNORED
    return changed


def _splice(batch: dict[str, torch.Tensor], rows: np.ndarray, mask: torch.Tensor, rng: np.random.Generator) -> None:
    """Half of `rows` go on from a random place with what stands there in another row."""
    whole = {name: value.clone() for name, value in batch.items() if value.shape[:2] == mask.shape}
    lengths = mask.sum(1).tolist()
    for row in rows[rng.random(len(rows)) < 0.5]:
        other = int(rng.integers(len(mask)))
        least = min(lengths[row], lengths[other])
        if least < 4:
            continue
        cut = int(rng.integers(2, least - 1))
        for name, value in whole.items():
            batch[name][row, cut:] = value[other, cut:]


def _replace(ids: torch.Tensor, mask: torch.Tensor, rows: np.ndarray, rng: np.random.Generator) -> None:
    """Tokens of `rows` become tokens drawn from all that the batch's texts hold."""
    inner = mask.clone()
    inner[:, 0] = False
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
    inner[torch.arange(len(mask)), last] = False
    pool = ids[inner]
    if not len(pool):
        return
    chosen = torch.zeros_like(inner)
    chosen[torch.from_numpy(rows)] = torch.from_numpy(rng.random((len(rows), mask.shape[1])) < REPLACED)
    chosen &= inner
    ids[chosen] = pool[torch.from_numpy(rng.integers(len(pool), size=int(chosen.sum())))]
