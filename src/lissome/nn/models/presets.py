"""Configs of well-known shapes. Each is a function of sizes, so that a preset is a place to begin and not a fixed thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lissome.nn.models.config import ModelConfig, model_config


def llama(
    vocabulary: int = 49152,
    width: int = 576,
    layers: int = 30,
    heads: int = 9,
    kv_heads: int = 3,
    inner: int = 1536,
    length: int = 2048,
    *,
    dim: int | None = None,
    base: float = 10000.0,
    eps: float = 1e-5,
    tied: bool = True,
) -> ModelConfig:
    """A decoder with rotary positions, RMS normalisation first, gated networks and grouped heads (Touvron et al. 2023). Sizes are SmolLM2-135M's."""
    return model_config(
        {
            "width": width,
            "length": length,
            "causal": True,
            "embedding": {"kind": "tokens", "vocabulary": vocabulary},
            "positions": {"kind": "rotary", "base": base},
            "blocks": [
                {
                    "attention": {"kind": "full", "heads": heads, "kv_heads": kv_heads, "dim": dim},
                    "ffn": {"kind": "gated", "inner": inner},
                    "norm": {"kind": "rms", "eps": eps},
                    "repeat": layers,
                }
            ],
            "final_norm": {"kind": "rms", "eps": eps},
            "heads": {"lm": {"kind": "lm", "tied": tied}},
        }
    )


def bert(
    vocabulary: int = 30522,
    width: int = 384,
    layers: int = 6,
    heads: int = 12,
    inner: int = 1536,
    length: int = 512,
    *,
    types: int = 2,
    activation: str = "gelu",
    eps: float = 1e-12,
    dropout: float = 0.1,
    answers: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """An encoder with learned positions and normalisation last (Devlin et al. 2018). Sizes are MiniLM-L6's. answers: heads by name; none by default."""
    return model_config(
        {
            "width": width,
            "length": length,
            "causal": False,
            "embedding": {"kind": "tokens", "vocabulary": vocabulary, "types": types},
            "positions": "learned",
            "embedding_norm": {"kind": "layer", "eps": eps},
            "blocks": [
                {
                    "attention": {"kind": "full", "heads": heads, "bias": True},
                    "ffn": {"kind": "dense", "inner": inner, "activation": activation},
                    "norm": {"kind": "layer", "eps": eps},
                    "norm_first": False,
                    "repeat": layers,
                }
            ],
            "heads": answers or {},
            "dropout": dropout,
        }
    )


def vit(
    image: int = 224,
    patch: int = 16,
    width: int = 192,
    layers: int = 12,
    heads: int = 3,
    inner: int = 768,
    classes: int = 1000,
    *,
    channels: int = 3,
    activation: str = "gelu",
    bias: bool = True,
    eps: float = 1e-12,
    dropout: float = 0.0,
    answers: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """A classifier of images as sequences of patches (Dosovitskiy et al. 2020). Sizes are ViT-Tiny's. answers: other heads than classes of the whole."""
    return model_config(
        {
            "width": width,
            "length": (image // max(1, patch)) ** 2 + 1,
            "causal": False,
            "embedding": {"kind": "patches", "image": image, "patch": patch, "channels": channels},
            "positions": "learned",
            "blocks": [
                {
                    "attention": {"kind": "full", "heads": heads, "bias": bias, "out_bias": True},
                    "ffn": {"kind": "dense", "inner": inner, "activation": activation},
                    "norm": {"kind": "layer", "eps": eps},
                    "repeat": layers,
                }
            ],
            "final_norm": {"kind": "layer", "eps": eps},
            "heads": {"classification": {"kind": "classification", "classes": classes, "pool": "first"}} if answers is None else answers,
            "dropout": dropout,
        }
    )


def mobile(vocabulary: int = 8192, width: int = 256, layers: int = 12, heads: int = 8, kv_heads: int = 2, inner: int = 512, length: int = 1024) -> ModelConfig:
    """A light decoder: 8.8M parameters, a quarter of them embedding.

    What makes it light: input and output share the embedding (2.1M, not 4.2M), four query heads share a key head (keys and values are a quarter of the
    cache and of their matrices), the gated network is twice as wide as the model where four times is usual, and the vocabulary is small. It is deep and thin,
    as what is this small does better (MobileLLM, Liu et al. 2024).
    """
    return llama(vocabulary, width, layers, heads, kv_heads, inner, length)


PRESETS: dict[str, Callable[..., ModelConfig]] = {"llama": llama, "bert": bert, "vit": vit, "mobile": mobile}
