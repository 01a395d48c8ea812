"""Self-speculation: a model's first layers draft tokens, and all its layers check them in one step. What is said is what the model says by itself.

Elhoushi et al., "LayerSkip", 2024: the draft shares the model's final norm, and the checking step goes on from the draft's own states, keys and values, so
that no layer runs twice for a token. Leviathan et al., "Fast inference from transformers via speculative decoding", 2023: the rule by which drawn tokens are
accepted, which leaves their distribution as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from lissome.core.config import Config
from lissome.core.errors import BadInput
from lissome.engines.decoding.engine import Engine
from lissome.engines.decoding.sampling import Sampler, drawn, softmax
from lissome.kernels.decoder.arrays import Array, room
from lissome.kernels.decoder.packed import chosen_rows

WAITING = np.empty(0, np.float32)
"""Logits that were not asked for yet."""


class Drafting(Config):
    """How tokens are drafted.

    layers: how many of the first layers draft. tokens: drafted before each check; with the one before them no more rows than the kernel multiplies straight
    from the codes. least: where the draft's likeliest token has a smaller probability, what was drafted so far is checked. head: how many tokens of the
    vocabulary a draft chooses among, None: all; a small head saves much of a draft's time where the vocabulary is large.
    """

    layers: int = Field(ge=1)
    tokens: int = Field(default=4, ge=1, le=7)
    least: float = Field(default=0.0, ge=0, lt=1)
    head: int | None = Field(default=None, ge=2)


class Speculative:
    """Reads and draws, as an engine and a sampler together do, in one slot.

    frequent: the ids that `drafting.head` is taken from, most frequent first; by default in the vocabulary's order, in which BPE learned them.
    checks, drafted, accepted: how many steps of all layers there were, tokens drafted for them, and drafted tokens that stood.
    """

    def __init__(self, engine: Engine, sampler: Sampler, drafting: Drafting, *, frequent: Sequence[int] | None = None, slot: int = 0) -> None:
        layers, vocabulary = len(engine.weights.layers), engine.weights.embedding.rows
        if drafting.layers >= layers:
            raise BadInput(
                f"{drafting.layers} layers cannot draft for a model of {layers}",
                expected=f"1 to {layers - 1}" if layers > 1 else "a model of two layers or more",
            )
        if drafting.head is not None and drafting.head > (len(frequent) if frequent is not None else vocabulary):
            raise BadInput(f"a draft cannot choose among {drafting.head:,} tokens: there are {vocabulary if frequent is None else len(frequent):,}")
        self.engine, self.sampler, self.drafting, self.slot = engine, sampler, drafting, slot
        self.words = None if drafting.head is None else np.array(list(frequent or range(vocabulary))[: drafting.head])
        self.early = engine.part(0, drafting.layers, None if self.words is None else chosen_rows(engine.weights.head, self.words))
        self.late = engine.part(drafting.layers, layers)
        self.checks = self.drafted = self.accepted = 0
        self._ready: deque[int] = deque()
        self._last = (0, 0)

    def read(self, tokens: list[int], slot: int = 0, start: int = 0) -> Array:
        """Logits [vocabulary] after `tokens`; none after a single token that goes on: `draw` sees to it."""
        if len(tokens) == 1 and start > 0:
            self._last = (tokens[0], start)
            return WAITING
        self._ready.clear()
        return self.engine.read(tokens, self.slot, start)

    def draw(self, logits: Array, seen: Sequence[int] = ()) -> int:
        """The next token; seen: all that stands before it. Raises BadModel where the model's logits are not finite."""
        if len(logits):
            return self.sampler.draw(logits, seen)
        if not self._ready:
            self._ready.extend(self._said(seen))
        return self._ready.popleft()

    def _said(self, seen: Sequence[int]) -> list[int]:
        """The tokens that follow, one or more: those drafted that stand, and one that the whole model adds."""
        tokens, states, proposed = self._drafts(seen)
        rows = len(tokens)
        places = np.arange(self._last[1], self._last[1] + rows)
        logits = self.late.step(np.array(tokens), np.full(rows, self.slot), places, np.arange(rows), begin=states[:rows])
        said: list[int] = []
        for at, row in enumerate(logits):
            before = [*seen, *said]
            if at + 1 == rows or self.sampler.config.temperature == 0:
                said.append(self.sampler.draw(row, before))
            else:
                self.sampler.check(row)
                said.append(settled(self.sampler.probabilities(row, before), proposed[at], tokens[at + 1], self.sampler.generator))
            if at + 1 < rows and said[-1] != tokens[at + 1]:
                break
        self.checks, self.drafted, self.accepted = self.checks + 1, self.drafted + rows - 1, self.accepted + len(said) - 1
        return said

    def _drafts(self, seen: Sequence[int]) -> tuple[list[int], Array, list[Array]]:
        """The last token and the drafted ones after it, the states of all after the early layers, and what each draft was drawn from (if any was)."""
        token, at = self._last
        most = min(self.drafting.tokens, self.engine.capacity - 1 - at)
        states, tokens, proposed = room((most + 1, self.engine.weights.embedding.columns)), [token], []
        slot, none, one = np.array([self.slot]), np.arange(0), np.arange(1)
        for i in range(most + 1):
            wanted = one if i < most else none
            logits = self.early.step(np.array([tokens[i]]), slot, np.array([at + i]), wanted, end=states[i : i + 1])
            draft = self._draft(logits[0], [*seen, *tokens[1:]]) if i < most else None
            if draft is None:
                break
            tokens.append(draft[0])
            proposed.append(draft[1])
        return tokens, states, proposed

    def _draft(self, logits: Array, seen: Sequence[int]) -> tuple[int, Array] | None:
        """A token and what it was drawn from, or None where the draft is not sure enough. The rule looks at no drawn token, or it would bias the draws."""
        if not np.isfinite(logits).all():
            return None
        if self.drafting.least and float(softmax(logits).max()) < self.drafting.least:
            return None
        if self.words is not None:
            few, logits = logits, np.full(self.engine.weights.embedding.rows, -np.inf, np.float32)
            logits[self.words] = few
        if self.sampler.config.temperature == 0:
            return int(self.sampler.penalised(logits, seen).argmax()), WAITING
        proposed = self.sampler.probabilities(logits, seen)
        return drawn(proposed, self.sampler.generator), proposed


def settled(meant: Array, proposed: Array, token: int, generator: np.random.Generator) -> int:
    """`token`, drawn from `proposed` [vocabulary], or another in its place, so that the outcome is a draw from `meant` [vocabulary].

    It stands with probability min(1, meant / proposed); else the outcome is drawn from what `meant` has more (Leviathan et al. 2023, algorithm 1).
    """
    if generator.random() * proposed[token] < meant[token]:
        return token
    more = (meant - proposed).clip(min=0)
    return drawn(more if more.sum() > 0 else meant, generator)
