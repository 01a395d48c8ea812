"""Configurations that were tuned, each with what on."""

from __future__ import annotations

from lissome.train.config import FinetuneConfig, TrainConfig


def sentiment_recipe() -> FinetuneConfig:
    """MiniLM (all-MiniLM-L6-v2, its own pooler, fresh head) on the four-domain sentiment task."""
    return FinetuneConfig(
        train=TrainConfig(epochs=1, lr=1e-4, warmup=0.1, weight_decay=0.01, precision="auto"),
        size=32,
        head_lr=5.0,
        freeze_embeddings=True,
        dropout=0.0,
    )


def digits_recipe() -> FinetuneConfig:
    """`small_cnn` from scratch on scikit-learn's digits."""
    return FinetuneConfig(train=TrainConfig(epochs=12, lr=3e-3, precision="auto"), size=64)
