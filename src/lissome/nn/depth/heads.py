"""A small classifier on what a block gives."""

from __future__ import annotations

import torch
from torch import nn

from lissome.core.errors import BadModel


class ExitHead(nn.Module):
    """Logits [n, classes] from hidden states: tokens [n, length, width], images [n, width, ...] or plain vectors [n, width].

    kind: "tokens", "images" or "vectors". Of tokens it reads the first and the mean of those that are no padding: early blocks have not yet gathered a text
    in its first token. inner: width of its hidden layer.
    """

    def __init__(self, kind: str, width: int, classes: int, inner: int = 128) -> None:
        super().__init__()
        self.kind, self.width, self.classes, self.inner = kind, width, classes, inner
        read = 2 * width if kind == "tokens" else width
        self.norm, self.hidden, self.out = nn.LayerNorm(read), nn.Linear(read, inner), nn.Linear(inner, classes)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """mask [n, length]: 0 at padding; tokens only."""
        if self.kind == "tokens":
            if mask is None:
                mean = hidden.mean(1)
            else:
                share = mask.to(hidden.dtype)
                mean = torch.einsum("nl,nlw->nw", share / share.sum(1, keepdim=True).clamp(min=1), hidden)
            hidden = torch.cat([hidden[:, 0], mean], -1)
        elif self.kind == "images":
            hidden = hidden.flatten(2).mean(-1)
        logits: torch.Tensor = self.out(nn.functional.gelu(self.hidden(self.norm(hidden))))
        return logits

    def spec(self) -> dict[str, int | str]:
        """What it is built from."""
        return {"kind": self.kind, "width": self.width, "classes": self.classes, "inner": self.inner}


def kind_of(hidden: torch.Tensor) -> tuple[str, int]:
    """Kind and width of a block's output. Raises BadModel for one that no head reads."""
    if hidden.ndim == 3:
        return "tokens", hidden.shape[2]
    if hidden.ndim == 2:
        return "vectors", hidden.shape[1]
    if hidden.ndim in (4, 5):
        return "images", hidden.shape[1]
    raise BadModel(f"no exit head reads a block's output of shape {list(hidden.shape)}", expected="[n, length, width], [n, channels, ...] or [n, width]")
