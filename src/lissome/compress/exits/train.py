"""Training a model for its exits: every exit learns the labels and what the whole model says; rows skip blocks by lot, so that early ones learn to suffice.

Teerapittayanon et al., "BranchyNet", 2016 (the losses of all exits together); Elhoushi et al., "LayerSkip", 2024 (later exits weigh more; layer dropout).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lissome.compress.exits.config import ExitsConfig
from lissome.core.progress import Progress
from lissome.nn.depth.dropout import layer_dropout
from lissome.nn.depth.exits import Exits
from lissome.train.batches import LABELS
from lissome.train.loop import Loss, TrainResult, train


def exit_loss(config: ExitsConfig) -> Loss:
    """A loss callable for a model with exits: scale * sum of weight * exit's loss, and the whole model's cross entropy where it trains too."""

    def loss(module: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        exits: Any = module
        labels = batch[LABELS].long()
        *early, last = exits.all_logits({name: one for name, one in batch.items() if name != LABELS})
        target = last.detach().float().softmax(-1)
        total = last.new_zeros(()) if config.frozen else functional.cross_entropy(last.float(), labels)
        for weight, logits in zip(exit_weights(exits.after), early, strict=True):
            told = functional.cross_entropy(logits.float(), labels)
            taught = functional.kl_div(logits.float().log_softmax(-1), target, reduction="batchmean")
            total = total + config.scale * weight * ((1 - config.distil) * told + config.distil * taught)
        return total

    return loss


def exit_weights(after: tuple[int, ...]) -> list[float]:
    """Weight of each exit's loss, in proportion to its depth; they sum to 1."""
    return [at / sum(after) for at in after]


def train_exits(
    exits: Exits, batches: Any, config: ExitsConfig, *, resume: Path | None = None, progress: Progress | None = None, identity: str = ""
) -> TrainResult:
    """Train the heads of `exits` in place, and its trunk unless `config.frozen`; afterwards thresholds may be set.

    Raises what `train` raises.
    """
    held = [one for one in exits.module.parameters() if one.requires_grad] if config.frozen else []
    for one in held:
        one.requires_grad_(False)
    exits.frozen = config.frozen
    skipping = contextlib.nullcontext() if config.frozen or not config.dropout else layer_dropout(exits.module, config.dropout, exits.blocks, exits.fixed)
    try:
        with skipping:
            result = train(exits, batches, exit_loss(config), config.train, resume=resume, progress=progress, identity=identity)
    finally:
        exits.frozen = False
        for one in held:
            one.requires_grad_(True)
    exits.trained.fill_(True)
    return result
