"""What distillation reads off a batch: the hard-label loss, where there are tokens, and which examples they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from lissome.compress.batches import inputs_of, labels_of
from lissome.core.errors import BadInput

MASK = "attention_mask"


def hard_loss(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
    """Cross entropy of logits [..., classes] and the batch's class numbers [...]; -100 counts as no label. Raises BadInput without labels."""
    labels = labels_of(batch)
    if labels is None:
        raise BadInput("the batch has no labels, which the hard-label term needs.", do='give them as "labels" or last in a tuple, or set labels to 0')
    return functional.cross_entropy(outputs.float().flatten(0, -2), labels.long().flatten())


def mask_of(batch: Any) -> torch.Tensor | None:
    """Where there are tokens, bool [batch, length]; None for batches without an attention mask."""
    mask = batch.get(MASK) if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None


def lengths_of(batch: Any) -> list[int] | None:
    """Tokens of each example where the batch is padded on the right only; None otherwise, where every example has the batch's shape."""
    mask = mask_of(batch)
    if mask is None:
        return None
    counts = mask.sum(1)
    straight = torch.arange(mask.shape[1], device=mask.device) < counts[:, None]
    return [int(n) for n in counts] if bool((straight == mask).all()) else None


def keys_of(batch: Any) -> list[bytes] | None:
    """16 bytes per example that tell what it holds, padding on the right left out; None where inputs are not all batch-first."""
    inputs, mask, lengths = inputs_of(batch), mask_of(batch), lengths_of(batch)
    arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in sorted(inputs.items())}
    sizes = {value.shape[0] if value.ndim else 0 for value in arrays.values()}
    if len(sizes) != 1:
        return None
    keys = []
    for i in range(sizes.pop()):
        total = hashlib.blake2b(digest_size=16)
        for name, value in arrays.items():
            row = value[i]
            if lengths is not None and mask is not None and row.ndim and row.shape[0] == mask.shape[1]:
                row = row[: lengths[i]]
            total.update(f"{name}{row.dtype}{row.shape}".encode())
            total.update(row.tobytes())
        keys.append(total.digest())
    return keys
