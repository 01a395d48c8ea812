"""Tiny models and their inputs, shared by the tests of models, forms and engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lissome.core.model import Model
from lissome.nn.cnn import small_cnn

VOCABULARY, LENGTH = 100, 48


def bert(labels: int = 2, seed: int = 0, **changes: object) -> nn.Module:
    """A BERT classifier of two layers; weights large enough that inputs matter to its outputs."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": VOCABULARY}
    config = BertConfig(**{**sizes, "max_position_embeddings": LENGTH, "num_labels": labels, "initializer_range": 0.2, **changes})
    module = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):  # transformers begins with zeros, which exporters fold away
                parameter.normal_(0, 0.1)
    return module


def bert_folder(folder: Path, labels: int = 2, **changes: object) -> Path:
    bert(labels, **changes).save_pretrained(folder)
    return folder


def texts(batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Token ids with a padded tail in every second row."""
    generator = np.random.default_rng(seed)
    mask = np.ones((batch, length), dtype=np.int64)
    mask[1::2, max(1, length - 3) :] = 0
    return {"input_ids": generator.integers(1, VOCABULARY, (batch, length), dtype=np.int64) * mask, "attention_mask": mask}


def images(batch: int, seed: int = 0, size: int = 12) -> dict[str, np.ndarray]:
    return {"images": np.random.default_rng(seed).normal(size=(batch, 1, size, size)).astype(np.float32)}


def rows(batch: int, seed: int = 0, width: int = 24) -> dict[str, np.ndarray]:
    return {"features": np.random.default_rng(seed).normal(size=(batch, width)).astype(np.float32)}


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


class Mlp(nn.Module):
    """Three linear layers, without biases on request."""

    def __init__(self, bias: bool = True):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(24, 48, bias=bias), nn.Linear(48, 48, bias=bias), nn.Linear(48, 4, bias=bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(features)))))


def cnn() -> nn.Module:
    """The digits CNN, narrow; batch norms with statistics that do something."""
    torch.manual_seed(0)
    module = small_cnn(classes=4, width=8)
    module.train()
    with torch.no_grad():
        for seed in range(3):
            module(torch.from_numpy(images(16, seed)["images"]))
    return module.eval()


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return Mlp().eval()


def mlp_without_bias() -> nn.Module:
    torch.manual_seed(0)
    return Mlp(bias=False).eval()


def no_module() -> dict[str, int]:
    return {"weights": 1}


def with_arguments(width: int) -> nn.Module:
    return nn.Linear(width, 2)


def failing() -> nn.Module:
    raise KeyError("no such layer")


def finished_model() -> Model:
    from lissome.nn.load import as_model

    return as_model(mlp(), "in memory")


not_a_function = 3
