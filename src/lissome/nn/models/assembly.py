"""Models put together from a config: a trunk of blocks, and heads on it.

model = assemble(config)
model(input_ids)                                   # the first head's output
model(input_ids, heads=("next", "topic"))          # {"next": ..., "topic": ...}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lissome.core.errors import BadConfig, BadInput, BadModel, closest
from lissome.core.model import Architecture
from lissome.nn.models.config import BlockConfig, ModelConfig, model_config
from lissome.nn.models.parts import make, maker_of
from lissome.nn.models.positions import Angles

FACTORY = "lissome.nn.models.assembly:assembled"
"""What a saved model's architecture names; its arguments are the config."""


class Block(nn.Module):
    """Attention and a feed-forward network, each in a residual branch with a norm of its own."""

    def __init__(self, config: BlockConfig, dropout: float, where: str, **given: Any):
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = make("attention", config.attention, f"{where}.attention", **given)
        self.attention_norm = make("norm", config.norm, f"{where}.norm", **given)
        self.ffn = make("ffn", config.ffn, f"{where}.ffn", **given)
        self.ffn_norm = make("norm", config.norm, f"{where}.norm", **given)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None = None, angles: Angles | None = None) -> torch.Tensor:
        """x [batch, n, width] -> [batch, n, width]; padding and angles as attention takes them."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), padding, angles))
            x = x + self.dropout(self.ffn(self.ffn_norm(x)))
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, padding, angles)))
            x = self.ffn_norm(x + self.dropout(self.ffn(x)))
        return x

    def extra_repr(self) -> str:
        """What the weights do not show."""
        return f"norm_first={self.norm_first}"


class Trunk(nn.Module):
    """All but the heads."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        given = {"width": config.width, "length": config.length, "causal": config.causal}
        self.embedding = make("embedding", config.embedding, "embedding", **given)
        self.positions = make("positions", config.positions, "positions", **given)
        self.embedding_norm = make("norm", config.embedding_norm, "embedding_norm", **given) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        layers = enumerate(config.layers())
        self.blocks = nn.ModuleList(Block(block, config.dropout, f"block {at}", layer=at, **given) for at, block in layers)
        self.final_norm = make("norm", config.final_norm, "final_norm", **given) if config.final_norm else None

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The hidden states [batch, n, width] of texts or images."""
        if pixel_values is not None:
            x = self.embedding(pixel_values)
        else:
            x = self.embedding(input_ids) if token_type_ids is None else self.embedding(input_ids, token_type_ids)
        x = self.positions(x)
        x = self.dropout(x if self.embedding_norm is None else self.embedding_norm(x))
        padding = tokens_of(attention_mask)
        known: dict[int, Angles | None] = {}
        for block in self.blocks:
            dim: Any = block.attention.dim
            if dim not in known:
                angles: Any = self.positions.angles(x.shape[1], dim, x.device)  # type: ignore[operator]
                known[dim] = None if angles is None else (angles[0][None], angles[1][None])  # one row for all: a batch may have as many rows as positions
            x = block(x, padding, known[dim])
        found: torch.Tensor = x if self.final_norm is None else self.final_norm(x)
        return found


class ModularModel(nn.Module):
    """A trunk and its heads. `config` is what it was made from."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        given = {"width": config.width, "embedding": self.trunk.embedding}
        self.heads = nn.ModuleDict({name: make("head", part, f'head "{name}"', **given) for name, part in config.heads.items()})

    def language_parts(self) -> tuple[nn.Module, nn.Linear] | None:
        """Trunk and output layer, where what the model returns is one linear layer's logits of tokens."""
        head: Any = next(iter(self.heads.values()), None)
        plain = head is not None and next(iter(self.config.heads.values())).kind == "lm" and head.dense is None and head.added is None
        return (self.trunk, head.linear) if plain else None

    def _answers(self, hidden: torch.Tensor, padding: torch.Tensor | None, heads: Sequence[str] | None) -> torch.Tensor | dict[str, torch.Tensor]:
        if heads is None:
            first: torch.Tensor = next(iter(self.heads.values()))(hidden, padding) if self.heads else hidden
            return first
        for name in heads:
            if name not in self.heads:
                known = list(self.heads)
                raise BadInput(f'the model has no head "{name}".{closest(name, known)}', expected=", ".join(known) or "no head: it gives hidden states")
        return {name: self.heads[name](hidden, padding) for name in heads}


class TextModel(ModularModel):
    """Takes token ids."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        heads: Sequence[str] | None = None,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Outputs for input_ids [batch, n]; attention_mask [batch, n] is 0 at padding. heads: names; the first head alone by default.

        Raises BadInput for a head that is not there.
        """
        return self._answers(self.trunk(input_ids, attention_mask, token_type_ids), tokens_of(attention_mask), heads)


class ImageModel(ModularModel):
    """Takes images."""

    def forward(self, pixel_values: torch.Tensor, heads: Sequence[str] | None = None) -> torch.Tensor | dict[str, torch.Tensor]:
        """Outputs for pixel_values [batch, channels, height, width]. heads: names; the first head alone by default. Raises BadInput for one not there."""
        return self._answers(self.trunk(pixel_values=pixel_values), None, heads)


def assemble(config: ModelConfig) -> ModularModel:
    """A model with fresh weights, the same for the same config, in eval mode. Raises BadConfig where parts do not fit the model's sizes, naming the block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        takes = getattr(maker_of("embedding", config.embedding.kind), "inputs", "text")
        model = ImageModel(config) if takes == "image" else TextModel(config)
        _start(model, config.spread)
    return model.eval()


def assembled(**config: Any) -> ModularModel:
    """`assemble`, as the factory of saved models: every part is known by name here, and no name leads to other code. Raises BadModel."""
    try:
        return assemble(model_config(config))
    except BadConfig as error:
        raise BadModel(error.what, where=error.where, expected=error.expected, do=error.do) from error


def architecture_of(model: ModularModel) -> Architecture:
    """How to build the model again."""
    return Architecture(kind="factory", target=FACTORY, config=model.config.model_dump(mode="json"))


def made_of_parts(model: nn.Module, what: str) -> ModularModel:
    """The model, if it is put together from parts. Raises BadModel otherwise."""
    if isinstance(model, ModularModel):
        return model
    raise BadModel(f"{what} takes models put together from parts, not {type(model).__name__}", do="take its weights over first: from_transformers(model)")


def tokens_of(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """True where there is a token [batch, n]; None without padding."""
    if attention_mask is None:
        return None
    mask = attention_mask.bool()
    return None if not torch.compiler.is_compiling() and bool(mask.all()) else mask


def parts_table(model: ModularModel) -> list[tuple[str, str, int]]:
    """(place, part, parameters) of the embedding, positions, blocks (alike neighbours together), norms and heads; a shared weight counts where it is first."""
    seen: set[int] = set()

    def counted(*modules: nn.Module | None) -> int:
        new = {id(p): p.numel() for module in modules if module is not None for p in module.parameters() if id(p) not in seen}
        seen.update(new)
        return sum(new.values())

    config, trunk = model.config, model.trunk
    rows = [("embedding", str(config.embedding), counted(trunk.embedding)), ("positions", str(config.positions), counted(trunk.positions))]
    if config.embedding_norm:
        rows.append(("embedding_norm", str(config.embedding_norm), counted(trunk.embedding_norm)))
    at = 0
    for block in config.blocks:
        run: list[Any] = list(trunk.blocks)[at : at + block.repeat]
        place = f"block {at}" if block.repeat == 1 else f"blocks {at}-{at + block.repeat - 1}"
        rows.append((f"{place} attention", str(block.attention), counted(*(one.attention for one in run))))
        rows.append((f"{place} ffn", str(block.ffn), counted(*(one.ffn for one in run))))
        rows.append((f"{place} norms", str(block.norm), counted(*(norm for one in run for norm in (one.attention_norm, one.ffn_norm)))))
        at += block.repeat
    if config.final_norm:
        rows.append(("final_norm", str(config.final_norm), counted(trunk.final_norm)))
    return rows + [(f"head {name}", str(part), counted(model.heads[name])) for name, part in config.heads.items()]


def _start(model: nn.Module, spread: float) -> None:
    """Fresh weights: matrices and tables normal, biases zero. A part that is made elsewhere starts as its constructor left it."""
    for owner in model.modules():
        if not type(owner).__module__.startswith(__package__):
            continue
        for module in owner.children():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
                nn.init.normal_(module.weight, std=spread)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
