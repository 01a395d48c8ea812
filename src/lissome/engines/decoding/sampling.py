"""How the next token is drawn from logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from lissome.core.config import Config
from lissome.core.errors import BadModel


class Sampling(Config):
    """How tokens are drawn.

    temperature: 0 takes the likeliest. top_k: of the k likeliest alone; top_p: of the fewest that hold so much probability (Holtzman et al. 2020); min_p: of
    those at least so probable as a share of the likeliest (Nguyen et al. 2024). All are applied after the temperature, in this order.
    repetition_penalty: logits of tokens seen before are divided by it where positive and multiplied where negative (Keskar et al. 2019). seed: of the draws.
    """

    temperature: float = Field(default=0.0, ge=0, le=10)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, gt=0, lt=1)
    repetition_penalty: float = Field(default=1.0, ge=1, le=10)
    seed: int = Field(default=0, ge=0)


class Sampler:
    """Draws tokens one after the other; the same seed gives the same draws."""

    def __init__(self, config: Sampling) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(config.seed)

    def draw(self, logits: torch.Tensor, seen: Sequence[int] = ()) -> int:
        """The next token, from logits [vocabulary]; seen: what stands before it. Raises BadModel where the logits are not finite."""
        self.check(logits)
        config = self.config
        logits = self.penalised(logits, seen)
        if config.temperature == 0:
            return int(logits.argmax())
        order, probabilities = _shortlist(logits / config.temperature, config)
        return int(order[torch.multinomial(probabilities, 1, generator=self.generator)])

    def check(self, logits: torch.Tensor) -> None:
        """Raise BadModel where logits are not finite."""
        if not torch.isfinite(logits).all():
            raise BadModel("its logits are not finite", do="check the weights: lissome cannot go on from NaN or infinity")

    def penalised(self, logits: torch.Tensor, seen: Sequence[int]) -> torch.Tensor:
        """Logits [vocabulary] after the repetition penalty."""
        penalty = self.config.repetition_penalty
        if penalty == 1 or not len(seen):
            return logits
        logits = logits.clone()
        at = torch.tensor(sorted(set(seen)))
        logits[at] = torch.where(logits[at] > 0, logits[at] / penalty, logits[at] * penalty)
        return logits

    def probabilities(self, logits: torch.Tensor, seen: Sequence[int] = ()) -> torch.Tensor:
        """What `draw` draws from: the probability of every token [vocabulary], float64; one token has all of it at temperature 0."""
        config, logits = self.config, self.penalised(logits, seen)
        if config.temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
        if config.top_k is None and config.top_p is None and config.min_p is None:
            return (logits / config.temperature).double().softmax(0)
        order, kept = _shortlist(logits / config.temperature, config)
        return torch.zeros(len(logits), dtype=torch.float64).index_put((order,), kept / kept.sum())


def _shortlist(logits: torch.Tensor, config: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that may be drawn, likeliest first, and their weights."""
    found = logits.topk(min(config.top_k, len(logits))) if config.top_k else logits.sort(descending=True)
    probabilities = found.values.double().softmax(0)
    keep = torch.ones_like(probabilities, dtype=torch.bool)
    if config.top_p is not None:
        keep &= probabilities.cumsum(0) - probabilities < config.top_p
    if config.min_p is not None:
        keep &= probabilities >= config.min_p * probabilities[0]
    return found.indices[keep], probabilities[keep]
