"""Fitting the learned scorers: everything else frozen, dense attention, and a scorer for each layer that learns where attention's mass lies.

The warm-up of DeepSeek-V3.2 (DeepSeek-AI 2025) at the scale of one machine: the target is worked out for some queries of each sequence, so nothing of the
size of all pairs is ever held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import nn

from lissome.core.cache import digest
from lissome.core.config import Config
from lissome.core.errors import BadConfig, BadInput
from lissome.core.progress import Progress
from lissome.kernels.attention.selection import blocks_of
from lissome.nn.attention.importance import importance_loss, threshold_for
from lissome.nn.attention.in_transformers import listening, pattern_of
from lissome.nn.attention.indexer import indexer_loss
from lissome.nn.attention.learned import attentions
from lissome.nn.attention.patterns import Pattern
from lissome.nn.attention.sight import Sight
from lissome.train.batches import LABELS
from lissome.train.config import TrainConfig
from lissome.train.loop import TrainResult, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loss = Callable[[nn.Module, Sight, torch.Tensor, float | None], torch.Tensor]


class IndexingConfig(Config):
    """How to fit learned scorers.

    train: steps, learning rate and so on; "auto" precision means float32, which the target is computed in. For indexers 3e-3 was better than 1e-2 on layers
    2, 9 and 23 of SmolLM2-135M, for importances 0.1 was about as good as 0.01.
    rows: queries of each sequence that are looked at in a step, drawn anew each time.
    """

    train: TrainConfig = TrainConfig(steps=200, lr=3e-3, weight_decay=0.0, precision="fp32")
    rows: int = Field(default=64, ge=1)


IMPORTANCE = IndexingConfig(train=TrainConfig(steps=100, lr=0.1, weight_decay=0.0, precision="fp32"))
"""What `fit_importance` takes by default."""


class _Scorers(nn.Module):
    """What is trained: the scorers of all layers. The model that they belong to is looked at and not a part of it."""

    def __init__(self, scorers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.scorers = nn.ModuleList(scorers.values())


def fit_indexers(
    model: PreTrainedModel,
    batches: Any,
    config: IndexingConfig | None = None,
    *,
    patterns: Sequence[Pattern] | None = None,
    resume: Path | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the indexer of every layer whose pattern names one (`use(model, "... | top_blocks(8, indexer)")`) by `indexer_loss`; nothing else changes.

    batches: dicts of the model's inputs (labels are not read), a list or what `train` takes. The queries drawn, and so the result, follow from the seed.
    patterns: what every layer's indexer is to serve, in place of the layer's own pattern; the loss is the mean over them.
    resume: folder for checkpoints, as in `train`. The target leaves out what the pattern shows before it asks the indexer.
    Raises BadConfig where no layer has an indexer, BadInput where all sequences are too short to choose in, and what `train` raises.
    """
    return _fit(model, batches, config or IndexingConfig(), "indexer", indexer_loss, patterns, resume, progress)


def fit_importance(
    model: PreTrainedModel,
    batches: Any,
    config: IndexingConfig | None = None,
    *,
    patterns: Sequence[Pattern] | None = None,
    resume: Path | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the learned importance of every layer whose pattern names it, by `importance_loss`, as `fit_indexers` does indexers."""
    return _fit(model, batches, config or IMPORTANCE, "importance", importance_loss, patterns, resume, progress)


@torch.no_grad()
def thresholds(model: PreTrainedModel, batches: Any, score: Callable[[torch.Tensor, Sight], torch.Tensor], count: int) -> list[float]:
    """For each layer, the score that `count` tokens of a sequence reach on average, over all key heads: for entropy_tokens and learned_tokens.

    score: `feature_entropy` or `learned_importance`. Padding counts for nothing.
    """
    found: dict[int, list[torch.Tensor]] = {}

    def watch(module: Any, sight: Sight, scale: float | None) -> None:
        if pattern_of(module) is None:
            return
        assert sight.k is not None
        scores = score(sight.k, sight)
        padding = torch.zeros(1, sight.keys, dtype=torch.bool) if sight.documents is None else sight.documents < 0
        found.setdefault(module.layer_idx, []).extend(scores[b][:, ~padding[b % len(padding)]] for b in range(len(scores)))

    with listening(watch, dense=True):
        for batch in batches:
            _look(model, batch)
    if not found:
        raise BadConfig("no layer of the model has a pattern", do='call use(model, "everything()") first')
    return [_threshold(found[layer], count) for layer in sorted(found)]


def _threshold(scores: list[torch.Tensor], count: int) -> float:
    """One number from [kv_heads, tokens] of every sequence."""
    shortest = min(one.shape[-1] for one in scores)
    if count > shortest:
        raise BadInput(f"{count} tokens cannot be global in a sequence of {shortest}.", do="give longer sequences, or ask for fewer")
    whole = torch.cat([one.flatten() for one in scores])
    rows = sum(len(one) for one in scores)
    return threshold_for(whole[None], min(len(whole), count * rows))


def _fit(
    model: PreTrainedModel,
    batches: Any,
    config: IndexingConfig,
    word: str,
    loss: Loss,
    patterns: Sequence[Pattern] | None,
    resume: Path | None,
    progress: Progress | None,
) -> TrainResult:
    scorers = {name: getattr(module, word) for name, module in attentions(model) if getattr(module, word, None) is not None}
    if not scorers:
        raise BadConfig(f"no layer of the model has a learned {word}", do=f"give it a pattern that names one: {_EXAMPLES[word]}")
    module: nn.Module = model  # transformers' own `to` is not typed
    home = next(module.parameters()).device

    def whole(trained: nn.Module, batch: Any) -> torch.Tensor:
        """Mean loss of all layers for one batch."""
        module.to(next(trained.parameters()).device)
        losses: list[torch.Tensor] = []

        def watch(layer: Any, sight: Sight, scale: float | None) -> None:
            own = pattern_of(layer)
            asked = [seen for pattern in (patterns or ([] if own is None else [own])) for seen in _asked(pattern, sight, word)]
            if not asked:
                return
            rows = torch.randint(sight.queries, (min(config.rows, sight.queries),), device=sight.q.device)  # type: ignore[union-attr]
            with torch.enable_grad():
                losses.append(torch.stack([loss(getattr(layer, word), seen, rows, scale) for seen in asked]).mean())

        with torch.no_grad(), listening(watch, dense=True):
            _look(model, batch)
        if not losses:
            raise BadInput(f"no layer asked its {word} for anything: the sequences are too short for its pattern to choose.", do="give longer sequences")
        return torch.stack(losses).mean()

    trained = _Scorers(scorers)
    exact = config.train.model_copy(update={"precision": "fp32"}) if config.train.precision == "auto" else config.train
    training = module.training
    module.train(False)
    try:
        identity = digest(word, sorted(scorers), config.rows, *map(str, patterns or ()))
        result = train(trained, batches, whole, exact, resume=resume, progress=progress, identity=identity)
    finally:
        module.to(home).train(training)
    if result.history and not any(row["loss"] for row in result.history):
        raise BadInput(f"nothing was learned: no query had a choice that a learned {word} could make.", do="give longer sequences")
    return result


def _asked(pattern: Pattern, sight: Sight, word: str) -> list[Sight]:
    """What the learned scorer sees each time that the pattern asks it, so that `shown` is what stands left of it; empty where it is not asked."""
    asked: list[Sight] = []

    def scorer(rows: torch.Tensor, seen: Sight) -> torch.Tensor:
        asked.append(seen)
        return rows.new_zeros(*rows.shape[:3], blocks_of(seen.keys)) if word == "indexer" else rows.new_zeros(rows.shape[:3])

    own: dict[str, Any] = {word: scorer}
    pattern.visits(dataclasses.replace(sight, **own))
    return asked


_EXAMPLES = {
    "indexer": 'use(model, "window(64) | top_blocks(8, indexer)")',
    "importance": 'use(model, "window(64) | top_tokens(8, learned_importance)")',
}


def _look(model: PreTrainedModel, batch: Any) -> None:
    """Run the model without its head."""
    body = getattr(model, "base_model", model)
    device = next(model.parameters()).device
    body(**{name: value.to(device) for name, value in batch.items() if name != LABELS})
