"""The learned scorers of a model's layers: attached to the attention modules as submodules, kept in one safetensors file beside the model."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lissome.core.errors import BadModel
from lissome.nn.attention.importance import Importance, learned_importance
from lissome.nn.attention.indexer import Indexer, indexer
from lissome.nn.attention.patterns import Pattern, PerHead, Union, Within

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "indexers.safetensors"
WORDS = {"indexer": indexer, "importance": learned_importance}
"""Name of the submodule, and the scorer that asks for it."""


def scorers(pattern: Pattern) -> set[str]:
    """Which learned scorers a pattern names: "indexer", "importance"."""
    if isinstance(pattern, Union):
        return scorers(pattern.left) | scorers(pattern.right)
    if isinstance(pattern, Within):
        return scorers(pattern.pattern)
    if isinstance(pattern, PerHead):
        return {word for one in pattern.patterns for word in scorers(one)}
    return {word for word, scorer in WORDS.items() if getattr(pattern, "scorer", None) is scorer}


def attach(model: PreTrainedModel, wanted: Callable[[int], set[str]], **sizes: Any) -> None:
    """Give every self-attention module of layer i the scorers `wanted(i)`, fresh ones, where it has none yet; `sizes` are passed to `Indexer`.

    Raises BadModel where no attention module tells its sizes.
    """
    found = dict(attentions(model))
    if not found:
        raise BadModel(f"{type(model).__name__} has no self-attention module that tells its layer and its heads, so it cannot have learned scorers")
    for module in found.values():
        heads, kv_heads, dim = _sizes(module)
        makers: dict[str, Callable[[], nn.Module]] = {
            "indexer": functools.partial(Indexer, heads, kv_heads, dim, **sizes),
            "importance": functools.partial(Importance, kv_heads, dim),
        }
        weight = next(module.parameters())
        for word in sorted(wanted(int(module.layer_idx))):
            if getattr(module, word, None) is None:
                setattr(module, word, makers[word]().to(weight.device))


def attentions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of self-attention, those that go through transformers' AttentionInterface."""
    for name, module in model.named_modules():
        if getattr(module, "layer_idx", None) is None or getattr(module, "is_cross_attention", False) or "Cross" in type(module).__name__:
            continue
        if _dim(module) is not None and getattr(module, "config", None) is not None:
            yield name, module


def save_indexers(model: PreTrainedModel, folder: str | Path) -> Path:
    """Write the learned scorers of all layers to `folder`/indexers.safetensors. Raises BadModel for a model without any."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    shapes: dict[str, dict[str, int]] = {}
    for name, module in attentions(model):
        for word in WORDS:
            scorer = getattr(module, word, None)
            if scorer is None:
                continue
            tensors |= {f"{name}.{word}.{key}": value.detach().cpu().contiguous() for key, value in scorer.state_dict().items()}
            if isinstance(scorer, Indexer):
                shapes[name] = {"index_heads": scorer.index_heads, "index_dim": scorer.index_dim, "span": scorer.span}
    if not tensors:
        raise BadModel("the model has no learned scorers to save", do='call use(model, "... | top_blocks(8, indexer)") and fit_indexers first')
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(Path(folder) / FILE), {"format": "lissome-indexers-1", "indexers": json.dumps(shapes)})
    return Path(folder) / FILE


def load_indexers(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Attach the learned scorers that `save_indexers` wrote, in place of those that are there.

    Raises BadModel for a file that is missing or not of this form, or made for another model.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / FILE
    if not path.is_file():
        raise BadModel("there are no saved indexers", where=str(path), do="write them with save_indexers(model, folder)")
    try:
        with safe_open(str(path), "pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, an iterator of this type is not there in every version
        shapes = json.loads(about.get("indexers", "null"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise BadModel(f"it cannot be read: {error}", where=str(path)) from error
    if about.get("format") != "lissome-indexers-1" or not isinstance(shapes, dict):
        raise BadModel("it does not hold indexers", where=str(path), expected="a file that save_indexers wrote")
    modules = dict(attentions(model))
    owners = {key.rsplit(".", 1)[0] for key in tensors}
    for owner in sorted(owners):
        name, word = owner.rsplit(".", 1)
        if name not in modules or word not in WORDS:
            raise BadModel(f'it holds a scorer for "{name}", which this model does not have', where=str(path), do="load what was saved from this model")
        state = {key.rsplit(".", 1)[1]: value for key, value in tensors.items() if key.startswith(owner + ".")}
        setattr(modules[name], word, _loaded(modules[name], word, state, shapes.get(name, {}), f"{path}: {name}"))
    return model


def _loaded(module: Any, word: str, state: dict[str, torch.Tensor], sizes: dict[str, int], where: str) -> nn.Module:
    heads, kv_heads, dim = _sizes(module)
    scorer = Indexer(heads, kv_heads, dim, **sizes) if word == "indexer" else Importance(kv_heads, dim)
    own = {key: list(value.shape) for key, value in scorer.state_dict().items()}
    found = {key: list(value.shape) for key, value in state.items()}
    if own != found:
        raise BadModel(f"the {word} was made for another layer: {found}", where=where, expected=str(own))
    scorer.load_state_dict(state)
    return scorer.to(next(module.parameters()).device)


def _sizes(module: Any) -> tuple[int, int, int]:
    """Heads, key heads and width of a head of an attention module."""
    heads = int(module.config.num_attention_heads)
    dim = _dim(module)
    assert dim is not None
    return heads, int(getattr(module.config, "num_key_value_heads", None) or heads), dim


def _dim(module: Any) -> int | None:
    found = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
    return None if found is None else int(found)
