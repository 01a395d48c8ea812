"""What a model answers: each head turns hidden states [batch, n, width] into an output of its own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from lissome.nn.ffn.activation import ACTIVATIONS
from lissome.nn.models.embeddings import Tokens
from lissome.nn.models.ffn import Activation
from lissome.nn.models.norms import Epsilon
from lissome.nn.models.parts import Whole

Pool = Literal["first", "mean", "last"]


class LanguageHead(nn.Module):
    """Logits of every token of the vocabulary [batch, n, vocabulary + added].

    tied: the embedding's rows are the output's too (Press and Wolf 2017). transform: an activation after a layer of its own, with layer normalisation, before
    the output, as in BERT. eps: of that normalisation.
    """

    def __init__(self, width: int, embedding: nn.Module, tied: bool = True, bias: bool = False, transform: Activation | None = None, eps: Epsilon = 1e-12):
        super().__init__()
        if not isinstance(embedding, Tokens):
            raise ValueError("a language head needs an embedding of tokens")
        self.activation = transform
        self.dense = nn.Linear(width, width) if transform else None
        self.norm = nn.LayerNorm(width, eps=eps) if transform else None
        self.linear = nn.Linear(width, embedding.vocabulary, bias=bias)
        self.added = nn.Linear(width, embedding.added.num_embeddings, bias=bias) if embedding.added is not None else None
        if tied:
            self.linear.weight = embedding.table.weight
            if self.added is not None and embedding.added is not None:
                self.added.weight = embedding.added.weight

    def forward(self, hidden: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        """hidden [batch, n, width] -> logits [batch, n, vocabulary + added]."""
        if self.dense is not None and self.norm is not None and self.activation:
            hidden = self.norm(ACTIVATIONS[self.activation](self.dense(hidden)))
        logits: torch.Tensor = self.linear(hidden)
        return logits if self.added is None else torch.cat((logits, self.added(hidden)), -1)


class ClassificationHead(nn.Module):
    """Logits of classes of the whole input [batch, classes].

    pool: what stands for the input: its first token, the mean, or the last token. pooler: a layer with tanh before the output, as in BERT.
    """

    def __init__(self, width: int, classes: Whole, pool: Pool = "mean", pooler: bool = False, bias: bool = True):
        super().__init__()
        self.pool = pool
        self.dense = nn.Linear(width, width) if pooler else None
        self.linear = nn.Linear(width, classes, bias=bias)

    def forward(self, hidden: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        """hidden [batch, n, width], padding [batch, n] bool (True: a token) or None -> [batch, classes]."""
        x = pooled(hidden, padding, self.pool)
        found: torch.Tensor = self.linear(x if self.dense is None else torch.tanh(self.dense(x)))
        return found

    def extra_repr(self) -> str:
        """What the weights do not show."""
        return f"pool={self.pool}"


class RegressionHead(ClassificationHead):
    """Numbers for the whole input [batch, outputs]."""

    def __init__(self, width: int, outputs: Whole = 1, pool: Pool = "mean", pooler: bool = False, bias: bool = True):
        super().__init__(width, outputs, pool, pooler, bias)


class TokenHead(nn.Module):
    """Logits of classes of every token [batch, n, classes]."""

    def __init__(self, width: int, classes: Whole, bias: bool = True):
        super().__init__()
        self.linear = nn.Linear(width, classes, bias=bias)

    def forward(self, hidden: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        """hidden [batch, n, width] -> [batch, n, classes]."""
        found: torch.Tensor = self.linear(hidden)
        return found


def pooled(hidden: torch.Tensor, padding: torch.Tensor | None, pool: Pool) -> torch.Tensor:
    """One vector [batch, width] for each input; padding is not looked at, whichever side it is on."""
    if padding is None:
        return hidden.mean(1) if pool == "mean" else hidden[:, 0 if pool == "first" else -1]
    if pool == "mean":
        shares = padding.to(hidden.dtype)
        return (hidden * shares[..., None]).sum(1) / shares.sum(1, keepdim=True).clamp(min=1)
    places = torch.arange(hidden.shape[1], device=hidden.device)
    at = torch.where(padding, places, -1).argmax(1) if pool == "last" else padding.to(torch.int64).argmax(1)
    return hidden.gather(1, at[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]
