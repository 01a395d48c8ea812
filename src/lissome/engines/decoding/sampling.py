"""How the next token is drawn from logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from lissome.core.config import Config
from lissome.core.errors import BadModel
from lissome.kernels.decoder.arrays import Array

SORTED = 512
"""Tokens that are sorted first where the fewest that hold a probability are asked for."""


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
        self.generator = np.random.default_rng(config.seed)

    def draw(self, logits: Any, seen: Sequence[int] = ()) -> int:
        """The next token, from logits [vocabulary]; seen: what stands before it. Raises BadModel where the logits are not finite."""
        self.check(logits)
        logits = self.penalised(logits, seen)
        if self.config.temperature == 0:
            return int(logits.argmax())
        order, weights = _shortlist(logits, self.config)
        at = drawn(weights, self.generator)
        return at if order is None else int(order[at])

    def check(self, logits: Any) -> None:
        """Raise BadModel where logits are not finite."""
        if not np.isfinite(np.asarray(logits)).all():
            raise BadModel("its logits are not finite", do="check the weights: lissome cannot go on from NaN or infinity")

    def penalised(self, logits: Any, seen: Sequence[int]) -> Array:
        """Logits [vocabulary] after the repetition penalty."""
        made: Array = np.asarray(logits)
        penalty = self.config.repetition_penalty
        if penalty == 1 or not len(seen):
            return made
        at, made = np.unique(np.asarray(seen)), made.copy()
        said = made[at]
        made[at] = np.where(said > 0, said / penalty, said * penalty)
        return made

    def probabilities(self, logits: Any, seen: Sequence[int] = ()) -> Array:
        """What `draw` draws from: the probability of every token [vocabulary], float64; one token has all of it at temperature 0."""
        logits = self.penalised(logits, seen)
        found = np.zeros(len(logits))
        if self.config.temperature == 0:
            found[logits.argmax()] = 1
            return found
        order, weights = _shortlist(logits, self.config)
        found[slice(None) if order is None else order] = weights / weights.sum()
        return found


def drawn(weights: Array, generator: np.random.Generator) -> int:
    """A place [n], as likely as its weight's share of all; a weight of 0 is never drawn."""
    upto = weights.cumsum()
    at = int(np.searchsorted(upto, generator.random() * upto[-1], side="right"))
    return at if at < len(weights) else int(np.flatnonzero(weights)[-1])  # the product may be rounded up to the sum


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Probabilities, float64."""
    with np.errstate(over="ignore"):  # what is far below the likeliest is 0 at a low temperature
        wide: Array = np.exp((logits.astype(np.float64) - float(logits.max())) / temperature)
    wide /= wide.sum()
    return wide


def _shortlist(logits: Array, config: Sampling) -> tuple[Array | None, Array]:
    """The tokens that may be drawn, likeliest first, and their weights; None for all tokens in their own order."""
    if config.top_k is None and config.top_p is None and config.min_p is None:
        return None, softmax(logits, config.temperature)
    order = _likeliest(logits, config.top_k or len(logits))
    probabilities = softmax(logits[order], config.temperature)
    if config.min_p is not None:  # what it leaves out is less likely than what stays: sums up to a token that stays are the same
        order, probabilities = _those(probabilities >= config.min_p * probabilities.max(), order, probabilities)
    if config.top_p is not None:
        few = _likeliest(probabilities, SORTED)
        if probabilities[few].sum() >= config.top_p:  # as nearly always: the whole vocabulary need not be sorted
            order, probabilities = _those(few, order, probabilities)
    order, probabilities = _those(np.argsort(-probabilities, kind="stable"), order, probabilities)
    if config.top_p is not None:
        order, probabilities = _those(probabilities.cumsum() - probabilities < config.top_p, order, probabilities)
    return order, probabilities


def _likeliest(values: Array, most: int) -> Array:
    """Places of the largest values, in no order; of all where there are no more."""
    return np.argpartition(-values, most - 1)[:most] if most < len(values) else np.arange(len(values))


def _those(which: Array, *arrays: Array) -> tuple[Array, ...]:
    return tuple(one[which] for one in arrays)
