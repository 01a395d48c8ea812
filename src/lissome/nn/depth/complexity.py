"""How complex a text is, from its tokens alone: a score in [0, 1] that chooses how many blocks a text takes before any has run.

Four figures a text, each standardised over the texts it was fitted on, weighted and squashed:

rarity: mean inverse document frequency of its tokens, log((1 + documents) / (1 + documents that have it)): TF-IDF over the text (Sparck Jones 1972).
length: log(1 + tokens).
syntax: clause boundaries a token: commas, semicolons, colons, dashes and brackets, and words that begin a clause (CLAUSES).
words: characters a word, as in readability formulas: long words are late words.

They are looked up token by token, so no tokenizer is needed once it is fitted, and nothing but the ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lissome.core.errors import BadInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FIGURES = ("rarity", "length", "syntax", "words")
BOUNDARIES = frozenset(",;:()[]\u2013\u2014-")
CLAUSES = frozenset({
    "that", "which", "who", "whom", "whose", "because", "although", "though", "while", "whereas", "unless", "until", "since", "if", "when", "where",
    "after", "before", "but", "yet", "however", "despite",
})  # fmt: skip
MARKS = ("\u0120", "\u2581", " ")
"""How byte-level BPE and SentencePiece write the space before a word; WordPiece writes ## where there is none."""


class Complexity(nn.Module):
    """table [vocabulary, 4]: of each token its rarity, its boundaries, its characters, and whether it begins a word. Fitted by `fit_complexity`."""

    table: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        for name, shape in (("table", (vocabulary, 4)), ("mean", (4,)), ("deviation", (4,)), ("weight", (4,)), ("bias", ())):
            self.register_buffer(name, torch.zeros(shape))

    def figures(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The four figures [n, 4] of texts [n, length]; mask [n, length]: 0 at padding."""
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocabulary:
            raise BadInput(f"token {int(ids.max())} is beyond the {self.vocabulary:,} tokens whose rarity is known", do="fit it with the model's tokenizer")
        given = torch.ones_like(ids) if mask is None else mask
        shares = given.to(self.table.dtype)[..., None]
        sums, tokens = (self.table[ids] * shares).sum(1), shares.sum(1).clamp(min=1)
        rarity, boundaries, characters, words = (sums[:, at : at + 1] for at in range(4))
        return torch.cat([rarity / tokens, tokens.log1p(), boundaries / tokens, characters / words.clamp(min=1)], -1)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Complexity [n] in [0, 1]."""
        return torch.sigmoid((self.figures(ids, mask) - self.mean) / self.deviation @ self.weight + self.bias)

    def spec(self) -> dict[str, Any]:
        """What it is built from."""
        return {"vocabulary": self.vocabulary}


def fit_complexity(texts: Sequence[Sequence[int]], tokens: Sequence[str], hard: np.ndarray | None = None, ridge: float = 1.0) -> Complexity:
    """Learn rarities from `texts` (ids each), and how much each figure says from which of them are hard.

    tokens: the vocabulary as the tokenizer writes it, by id. hard [n] of 0 and 1: texts that an early exit gets wrong; a ridge logistic regression weighs the
    figures (all four alike without it, or where all texts are alike). Raises BadInput for fewer than 20 texts.
    """
    if len(texts) < 20:
        raise BadInput(f"{len(texts)} texts are too few to tell common words from rare ones", expected="at least 20, better thousands")
    made = Complexity(len(tokens))
    made.table.copy_(_table(texts, tokens))
    figures = torch.cat([made.figures(torch.tensor([list(text) or [0]])) for text in texts])
    made.mean.copy_(figures.mean(0))
    spread = figures.std(0)
    told = spread > 1e-6  # a figure that is the same for all texts says nothing, and must not where a text differs later
    made.deviation.copy_(torch.where(told, spread, 1.0))
    standard = (figures - made.mean) / made.deviation
    if hard is None or len(np.unique(hard)) < 2:
        made.weight.copy_(0.5 * told)
        return made
    weights = _logistic(torch.cat([standard, torch.ones(len(standard), 1)], 1).double(), torch.as_tensor(hard, dtype=torch.float64), ridge)
    made.weight.copy_(weights[:4] * told)
    made.bias.copy_(weights[4])
    return made


def vocabulary_of(tokenizer: Tokenizer) -> list[str]:
    """The vocabulary as the tokenizer writes it, by id."""
    return [tokenizer.id_to_token(at) or "" for at in range(tokenizer.get_vocab_size())]


def _table(texts: Sequence[Sequence[int]], tokens: Sequence[str]) -> torch.Tensor:
    seen = np.zeros(len(tokens))
    for text in texts:
        seen[np.unique(np.asarray(text, dtype=np.int64))] += 1
    table = np.zeros((len(tokens), 4), dtype=np.float32)
    table[:, 0] = np.log((1 + len(texts)) / (1 + seen))
    spaced = any(token.startswith(MARKS) for token in tokens)
    for at, token in enumerate(tokens):
        plain = token.removeprefix("##").lstrip("".join(MARKS)).lower()
        begins = token.startswith(MARKS) if spaced else not token.startswith("##")
        letters = sum(one.isalpha() for one in plain) if not (plain.startswith("[") and plain.endswith("]")) else 0
        table[at, 1] = plain in BOUNDARIES or (begins and plain in CLAUSES)
        table[at, 2], table[at, 3] = letters, begins and letters > 0
    return torch.from_numpy(table)


def _logistic(x: torch.Tensor, y: torch.Tensor, ridge: float) -> torch.Tensor:
    """Weights [columns] of a logistic regression of y on x [n, columns], by Newton's method; the last column, which is constant, is not shrunk."""
    shrink = torch.full((x.shape[1],), ridge, dtype=x.dtype)
    shrink[-1] = 1e-6
    weights = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(25):
        p = torch.sigmoid(x @ weights)
        gradient = x.T @ (p - y) + shrink * weights
        step = torch.linalg.solve((x.T * (p * (1 - p))) @ x + torch.diag(shrink), gradient)
        weights = weights - step
        if float(step.abs().max()) < 1e-8:
            break
    return weights
