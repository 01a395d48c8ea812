"""A small encoder-decoder for translation, transformers' Marian (Junczys-Dowmunt et al. 2018) with random weights, dense or with a pattern.

    model = translator(TranslatorConfig(vocabulary=8192, pattern="window(64) | tokens([0, 64, 128, 192])"))

The pattern holds for the self-attention of the encoder, both ways, and of the decoder, up to its own place; what the decoder sees of the encoder stays dense.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, model_validator

from lissome.core.config import Config
from lissome.nn.attention.in_transformers import use
from lissome.nn.attention.patterns import tokens, window

if TYPE_CHECKING:
    from transformers import MarianMTModel


class TranslatorConfig(Config):
    """Sizes of a translator. The default has 7.6M parameters, one embedding for both languages and the output among them.

    vocabulary: tokens of the shared vocabulary. length: the most positions. width, heads, layers (of encoder and decoder each), inner: of a layer.
    pad, end: ids; the decoder begins with `pad`, as Marian does. pattern: of self-attention, as text; None: dense. seed: of the weights.
    """

    vocabulary: int = Field(default=8192, ge=4)
    length: int = Field(default=1024, ge=1)
    width: int = Field(default=256, ge=2)
    heads: int = Field(default=4, ge=1)
    layers: int = Field(default=3, ge=1)
    inner: int = Field(default=1024, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    pad: int = Field(default=0, ge=0)
    end: int = Field(default=2, ge=0)
    pattern: str | None = None
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _whole_heads(self) -> TranslatorConfig:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


def translator(config: TranslatorConfig) -> MarianMTModel:
    """A translator in eval mode. Two configs that differ in the pattern alone have the same weights. Raises BadConfig for a text that is no pattern."""
    from transformers import MarianConfig, MarianMTModel

    sizes = MarianConfig(
        vocab_size=config.vocabulary,
        d_model=config.width,
        encoder_layers=config.layers,
        decoder_layers=config.layers,
        encoder_attention_heads=config.heads,
        decoder_attention_heads=config.heads,
        encoder_ffn_dim=config.inner,
        decoder_ffn_dim=config.inner,
        max_position_embeddings=config.length,
        dropout=config.dropout,
        attention_dropout=0.0,  # sparse attention has none, and both shall learn alike
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=config.pad,
        eos_token_id=config.end,
        bos_token_id=None,
        decoder_start_token_id=config.pad,
        forced_eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: Any = MarianMTModel(sizes)
        model.eval()
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=config.width**-0.5)  # times sqrt(width) on the way in: unit variance
        with torch.no_grad():
            model.get_input_embeddings().weight[config.pad].zero_()
    if config.pattern is not None:
        use(model, config.pattern)
    found: MarianMTModel = model
    return found


def local_global(width: int, globals_: int, length: int) -> str:
    """window(width) with `globals_` tokens that lie evenly in `length`, as text: Longformer's pattern (Beltagy et al. 2020)."""
    step = max(1, length // max(1, globals_))
    return str(window(width) | tokens(range(0, length, step)[:globals_])) if globals_ else str(window(width))
