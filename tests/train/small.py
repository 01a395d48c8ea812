"""A model with dropout, normalisation and a frozen part, batches and tasks for the tests of training: small, and random enough to catch a lost seed."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lissome.core.task import Split, Task, correct


class Small(nn.Module):
    """8 numbers -> 3 classes."""

    def __init__(self, dropout: float = 0.2):
        super().__init__()
        self.first, self.norm, self.drop, self.head = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(functional.relu(self.norm(self.first(x)))))


def small(seed: int = 0, dropout: float = 0.2) -> Small:
    torch.manual_seed(seed)
    return Small(dropout)


def data(n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(x[:, :3].argmax(axis=1))


def loader(n: int = 60, size: int = 8, shuffle: bool = True) -> DataLoader:
    return DataLoader(TensorDataset(*data(n)), batch_size=size, shuffle=shuffle)


def loss(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return functional.cross_entropy(module(batch[0]), batch[1])


def bits(module: nn.Module) -> str:
    """A hash of every byte of the state."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def number_task(n: int = 90) -> Task:
    """Fixed-size inputs `x`, three classes."""
    x, y = data(n)
    third = n // 3
    parts = {"train": slice(0, third), "calibration": slice(0, 6), "validation": slice(third, 2 * third), "test": slice(2 * third, n)}
    splits = {name: Split(list(x.numpy()[at]), y.numpy()[at]) for name, at in parts.items()}
    return Task(
        "numbers", "tabular", splits, lambda rows, padding: {"x": np.stack(rows)}, correct, f"numbers-{n}", "small:number_task", classes=("a", "b", "c")
    )


def word_task(n: int = 200, words: int = 50) -> Task:
    """Sequences of 3 to 30 token ids; the class says whether token 7 is among them."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(8, words, size=int(rng.integers(3, 31))) for _ in range(n)]
    targets = rng.integers(0, 2, size=n)
    for text, target in zip(texts, targets, strict=True):
        if target:
            text[rng.integers(len(text))] = 7

    def collate(rows, padding):
        width = max(len(row) for row in rows)
        ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    half = n // 2
    splits = {"train": Split(texts[:half], targets[:half]), "validation": Split(texts[half:], targets[half:])}
    splits |= {"calibration": splits["validation"], "test": splits["validation"]}
    return Task("words", "text-classification", splits, collate, correct, f"words-{n}", "small:word_task", classes=("without", "with"), variable_length=True)
