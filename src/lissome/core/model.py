"""A Model: a torch module, how to call it, and how to build it again without unpickling anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lissome.core.config import Config

if TYPE_CHECKING:
    from torch import nn


class Resize(Config):
    """How a pruned module differs from the one that its class or factory builds; `nn.resize` makes a fresh one fit.

    blocks: name of a list of blocks -> positions that stay. attributes: module -> attribute -> its value now (a width, a number of heads).
    shapes: parameter or buffer -> its shape now. Names in `attributes` and `shapes` are those after the blocks are gone.
    """

    blocks: Mapping[str, tuple[int, ...]] = {}
    attributes: Mapping[str, Mapping[str, int | tuple[int, ...]]] = {}
    shapes: Mapping[str, tuple[int, ...]] = {}


class Architecture(Config):
    """How to build the module with fresh weights; the weights themselves are a safetensors file beside it.

    huggingface: `target` is the transformers class name and `config` the content of config.json.
    factory: `target` is "package.module:function", called with `config` as keyword arguments.
    exported: a torch.export program (`model.pt2`), for modules that came without a recipe.
    resize: what pruning changed since; None for a module as it is built.
    """

    kind: Literal["huggingface", "factory", "exported"]
    target: str
    config: Mapping[str, Any] = {}
    resize: Resize | None = None


@dataclass(frozen=True)
class Model:
    """A module in eval mode plus what lissome must know about it.

    ref: what the user typed. fingerprint: hash of architecture and weights.
    directory: folder with tokenizer files for text models, else None.
    """

    module: nn.Module
    architecture: Architecture
    ref: str
    fingerprint: str
    directory: Path | None = None
