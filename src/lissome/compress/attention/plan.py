"""Which pattern each head gets: the candidates, what they keep of dense attention and cost, and the cheapest for every head that keeps enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lissome.compress.batches import forward
from lissome.core.errors import BadConfig, BadModel
from lissome.core.progress import Progress, Silent
from lissome.kernels.attention.selection import TILE
from lissome.nn.attention.in_transformers import listening
from lissome.nn.attention.mass import seen, softmax_rows
from lissome.nn.attention.patterns import Pattern, Sight, select, still
from lissome.nn.attention.steps import in_blocks
from lissome.nn.attention.written import parse

DENSE = "everything()"
Plan = tuple[str | None, ...]
"""A pattern for each layer, as text; None: dense."""
Kind = Literal["dense", "windows", "chosen"]

WIDTHS = (64, 128, 256, 512, 1024, 2048)
CHOSEN = ((256, 4), (512, 8), (1024, 16))
"""Widths of windows, and windows with the best blocks beside them; a window below the block of 64 keys saves nothing."""
SINKS = 4
"""The first keys stay visible: without them windowed decoders fall apart (StreamingLLM, Xiao et al. 2023, takes four)."""


@dataclass(frozen=True)
class Table:
    """What every candidate keeps and costs: lists [layers][heads][candidates].

    kept: share of dense attention's weight on keys that the candidate shows, mean over queries and examples. share: of the pairs of tiles and blocks that
    dense attention visits. candidates: as text; the last is dense. causal: whether the future is hidden. examples, longest: what it was measured on, in
    sequences and tokens.
    """

    candidates: tuple[str, ...]
    kept: list[list[list[float]]]
    share: list[list[list[float]]]
    causal: bool
    examples: int
    longest: int


def candidates(causal: bool, longest: int) -> tuple[str, ...]:
    """Patterns for sequences of at most `longest` tokens, narrow ones first and dense last; none that would show everything.

    Attention both ways also lets the first query see all, as a classifier's [CLS] must.
    """
    ways = 1 if causal else 2
    also = "" if causal else " | from_first(1)"
    found = [(ways * width + SINKS, f"window({width}) | sink({SINKS}){also}") for width in WIDTHS]
    found += [(ways * width + SINKS + TILE * count, f"window({width}) | sink({SINKS}){also} | top_blocks({count}, leading_query)") for width, count in CHOSEN]
    return (*(text for wide, text in sorted(found) if wide < longest), DENSE)


def kind_of(text: str) -> Kind:
    """What sort of pattern a head has: places alone, or keys chosen by what they hold."""
    if text == DENSE:
        return "dense"
    return "windows" if still(parse(text)) else "chosen"


class Watch:
    """Notes, layer by layer, what every candidate keeps and visits; a listener of `in_transformers.listening`.

    Each example is looked at without its padding, so lengths are its own.
    """

    def __init__(self, texts: Sequence[str], rows: int, seed: int):
        self.patterns: list[Pattern] = [parse(text) for text in texts]
        self.rows, self.seed, self.example, self.longest = rows, seed, 0, 0
        self.causal: bool | None = None
        self.kept: dict[int, np.ndarray] = {}
        self.visits: dict[int, np.ndarray] = {}
        self.counts: dict[int, int] = {}

    @torch.no_grad()
    def __call__(self, module: nn.Module, sight: Sight, scale: float | None) -> None:
        """Look at one layer's queries and keys of a batch."""
        layer = getattr(module, "layer_idx", None)
        if layer is None:
            raise BadModel(f"{type(module).__name__} does not know which layer it is, so its heads cannot have patterns of their own")
        assert sight.q is not None and sight.k is not None
        self.causal = sight.causal if self.causal is None else self.causal
        for i in range(sight.q.shape[0]):
            live = slice(None) if sight.documents is None else (sight.documents[i] >= 0).nonzero()[:, 0]
            q, k = sight.q[i : i + 1, :, live], sight.k[i : i + 1, :, live]
            own = Sight(q.shape[2], k.shape[2], 0, q.shape[1], sight.causal, q, k, indexer=sight.indexer, importance=sight.importance)
            kept, visits = self._look(own, scale, self.example + i)
            self.kept[layer] = self.kept.get(layer, 0) + kept
            self.visits[layer] = self.visits.get(layer, 0) + visits
            self.counts[layer] = self.counts.get(layer, 0) + 1
            self.longest = max(self.longest, k.shape[2])

    def _look(self, sight: Sight, scale: float | None, example: int) -> tuple[np.ndarray, np.ndarray]:
        """Mass kept, and visits, of one example [heads, candidates]. All layers look at the same rows of it."""
        drawn = torch.randperm(sight.queries, generator=torch.Generator().manual_seed(1_000_003 * self.seed + example))[: self.rows]
        rows = drawn.sort().values
        weights = softmax_rows(sight, rows, scale)[0]
        kept, visits = np.empty((2, sight.heads, len(self.patterns)))
        for at, pattern in enumerate(self.patterns):
            selection = select(pattern, sight)
            kept[:, at] = (weights * seen(selection, rows)[0]).sum(-1).mean(-1).numpy()
            visits[:, at] = (selection.blocks >= 0).sum((0, 2, 3)).numpy()
        return kept, visits


def profile(module: nn.Module, batches: Iterable[Any], texts: Sequence[str], *, rows: int = 64, seed: int = 0, progress: Progress | None = None) -> Table:
    """What every candidate would keep and cost in every head, from one run of the dense model over `batches`.

    module: a transformers model with `in_transformers.use` and no pattern in any layer. batches: of named inputs; an attention mask tells padding.
    texts: the candidates, dense last; learned scorers that they name have to be attached (`sparsify` fits them first).
    rows: queries of every example at which the kept mass is measured, exactly, so that memory is linear in the length.
    """
    progress = progress or Silent()
    if not texts or texts[-1] != DENSE:
        raise BadConfig("the last candidate must be dense", expected=DENSE)
    watch = Watch(texts, rows, seed)
    for batch in batches:
        with torch.no_grad(), listening(watch):
            forward(module, batch)
        watch.example = max(watch.counts.values(), default=0)
        progress.step()
    if not watch.counts:
        raise BadModel(f"{type(module).__name__} runs no self-attention through transformers' AttentionInterface", do="use another model")
    layers = sorted(watch.counts)
    kept = [watch.kept[layer] / watch.counts[layer] for layer in layers]
    share = [watch.visits[layer] / watch.visits[layer][:, -1:] for layer in layers]
    for one in kept:
        one[:, -1] = 1.0  # a sum of floats that is 1 by definition
    return Table(tuple(texts), [one.tolist() for one in kept], [one.tolist() for one in share], bool(watch.causal), watch.example, watch.longest)


def chosen_for(table: Table, tau: float) -> list[list[int]]:
    """For every layer and head the cheapest candidate that keeps at least `tau`; of equally cheap ones that which keeps most. tau = 1 is dense.

    Global tokens are one set for all heads of a layer: such a candidate is taken by all of them or by none, whichever is cheaper.
    """
    whole = {at for at, text in enumerate(table.candidates) if not in_blocks(parse(text))}
    found = []
    for kept, share in zip(table.kept, table.share, strict=True):
        heads = _cheapest(kept, share, tau, set())
        if len(set(heads)) > 1 and whole & set(heads):
            alike = [[at] * len(kept) for at in sorted(whole) if tau < 1 and all(k[at] >= tau for k in kept)]
            heads = min([_cheapest(kept, share, tau, whole), *alike], key=lambda one: sum(s[at] for s, at in zip(share, one, strict=True)))
        found.append(heads)
    return found


def _cheapest(kept: list[list[float]], share: list[list[float]], tau: float, without: set[int]) -> list[int]:
    """For every head of a layer the cheapest candidate that keeps at least `tau`, none of `without`."""
    heads = []
    for k, s in zip(kept, share, strict=True):
        fitting = [at for at in range(len(k)) if (k[at] >= tau and tau < 1 and at not in without) or at == len(k) - 1]
        heads.append(min(fitting, key=lambda at: (s[at], -k[at])))
    return heads


def plan_for(table: Table, tau: float) -> Plan:
    """A pattern for every layer, in which each head keeps at least `tau` of its attention mass; None: all heads dense. Heads that share keys may differ."""
    return tuple(_written([table.candidates[at] for at in heads]) for heads in chosen_for(table, tau))


def _written(texts: list[str]) -> str | None:
    """One text for a layer's heads."""
    if len(set(texts)) == 1:
        return None if texts[0] == DENSE else texts[0]
    return f"per_head({', '.join(texts)})"


@dataclass(frozen=True)
class Rung:
    """One setting of the knob. kept, share: of attention mass and of pairs, over all layers and heads."""

    tau: float
    plan: Plan
    kept: float
    share: float


@dataclass(frozen=True)
class Layer:
    """What a plan does to one layer. heads: how many are of each kind. kept: mean attention mass. share: of dense attention's pairs."""

    layer: int
    pattern: str | None
    heads: dict[str, int]
    kept: float
    share: float


def layers_of(table: Table, tau: float) -> tuple[Layer, ...]:
    """The plan of `tau`, layer by layer."""
    plan, found = plan_for(table, tau), []
    for number, heads in enumerate(chosen_for(table, tau)):
        kinds = [kind_of(table.candidates[at]) for at in heads]
        kept, share = (float(np.mean([row[at] for row, at in zip(whole[number], heads, strict=True)])) for whole in (table.kept, table.share))
        found.append(Layer(number, plan[number], {kind: kinds.count(kind) for kind in ("dense", "windows", "chosen")}, kept, share))
    return tuple(found)


def rungs_of(table: Table, taus: Sequence[float]) -> list[Rung]:
    """The plans of `taus`, from dense to bold, each once."""
    found: list[Rung] = []
    for tau in taus:
        plan = plan_for(table, tau)
        if not found or plan != found[-1].plan:
            layers = layers_of(table, tau)
            found.append(Rung(tau, plan, *(math.fsum(getattr(one, name) for one in layers) / len(layers) for name in ("kept", "share"))))
    return found
