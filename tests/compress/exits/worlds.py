"""Two nets that are always right: one whose first block knows the answer, one whose blocks never see what decides."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn

from lissome.core.task import Split, Task, correct


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        nn.init.zeros_(self.inner.weight)
        nn.init.zeros_(self.inner.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.inner(x))


class Net(nn.Module):
    """x [n, 8] -> logits [n, 2] by the sign of x[0]; `hidden`: the blocks see all but x[0]."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.hidden = hidden
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.clone()
        if self.hidden:
            state[:, 0] = 0
        for block in self.blocks:
            state = block(state)
        decides = (x if self.hidden else state)[:, :1]
        return torch.cat([-9 * decides, 9 * decides], 1)


def open_net() -> nn.Module:
    torch.manual_seed(0)
    return Net(False).eval()


def hidden_net() -> nn.Module:
    torch.manual_seed(0)
    return Net(True).eval()


def _task(sizes: tuple[int, int, int, int]) -> Task:
    rng = np.random.default_rng(0)
    splits = {}
    for name, n in zip(("train", "calibration", "validation", "test"), sizes, strict=True):
        x = rng.normal(size=(n, 8)).astype(np.float32)
        splits[name] = Split(list(x), (x[:, 0] > 0).astype(np.int64))
    return Task(
        name="signs",
        kind="classification",
        splits=splits,
        collate=lambda rows, _: {"x": np.stack(rows)},
        score=correct,
        fingerprint=hashlib.sha256(str(sizes).encode()).hexdigest(),
        ref="signs",
        classes=("minus", "plus"),
    )


def signs() -> Task:
    return _task((600, 200, 400, 500))


def few_signs() -> Task:
    return _task((100, 20, 60, 80))
