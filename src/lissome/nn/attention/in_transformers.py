"""Any transformers model whose attention goes through its AttentionInterface, with a pattern per layer.

    use(model, "window(512) | sink(64) | top_blocks(8)")   # or a list with one for each layer

The patterns stand in the model's configuration as text, and are saved with it; after `register()`, `model.set_attn_implementation("lissome")` reads them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lissome.core.errors import BadConfig, BadModel
from lissome.nn.attention import masks
from lissome.nn.attention.attend import attend
from lissome.nn.attention.learned import FILE, attach, load_indexers, scorers
from lissome.nn.attention.past import Past, past_of
from lissome.nn.attention.patterns import Pattern
from lissome.nn.attention.sight import Sight
from lissome.nn.attention.steps import selected
from lissome.nn.attention.written import parse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "lissome"
FIELD = "lissome_attention"
"""Where a model's configuration holds its patterns: one text, or a list with one for each layer; None in it: dense."""
Listener = Callable[[torch.nn.Module, Sight, float | None], None]
"""(attention module, what its queries look at, scale of the scores or None) -> None."""
_LISTENERS: list[tuple[Listener, bool]] = []


def use(model: PreTrainedModel, pattern: Pattern | str | Sequence[Pattern | str | None]) -> PreTrainedModel:
    """Give the model's self-attention a pattern, or a list with one for each layer (None: dense). Changes the model in place and returns it.

    A layer whose pattern names a learned scorer keeps the one it has; else it gets what `save_indexers` wrote into the folder the model came from, or a fresh
    one.

    Raises BadConfig for a text that is no pattern or a list of another length than the layers, BadModel for a model whose attention cannot be replaced.
    """
    register()
    written = str(pattern) if isinstance(pattern, Pattern | str) else [None if one is None else str(one) for one in pattern]
    for one in [written] if isinstance(written, str) else written:
        if one is not None:
            parse(one)
    config: Any = model.config
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(written, list) and layers is not None and len(written) != layers:
        raise BadConfig(f"{len(written)} patterns for {layers} layers", expected="one for each layer, or one for all")
    setattr(config, FIELD, written)
    return restore(model)


def restore(model: PreTrainedModel) -> PreTrainedModel:
    """Let the model compute attention by the patterns that its configuration holds already, as after loading it. Raises BadModel where it cannot."""
    register()
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise BadModel(f"{type(model).__name__} computes attention itself and not through transformers' AttentionInterface", do="use another model")
    for name, module in model.named_modules():
        models = [one for one in module.modules() if hasattr(one, "set_attn_implementation")]
        if models == [module] and _before not in module._forward_pre_hooks.values():  # the innermost: an encoder and its decoder apart
            module.register_forward_pre_hook(_before, with_kwargs=True)
        place = re.search(r"(?:^|\.)(\d+)\.", name)  # some encoders do not tell their layers their number, but the layer's name has it
        if place and hasattr(module, "is_causal") and getattr(module, "layer_idx", None) is None:
            module.layer_idx = int(place.group(1))
    written = getattr(model.config, FIELD, None)
    named = [set() if one is None else scorers(parse(one)) for one in ([written] if isinstance(written, str) else written or [])]
    if any(named):
        _attach(model, named)
    return model


def _attach(model: PreTrainedModel, named: list[set[str]]) -> None:
    """Learned scorers for the layers whose pattern names them; `named`: for each layer, or one for all."""
    folder = Path(str(getattr(model.config, "_name_or_path", None) or ""))
    had = {id(module) for word in ("indexer", "importance") for module in model.modules() if getattr(module, word, None) is not None}
    if not had and (folder / FILE).is_file():
        load_indexers(model, folder)
    attach(model, lambda layer: named[layer] if len(named) > 1 else named[0])


@contextlib.contextmanager
def listening(listener: Listener, dense: bool = False) -> Iterator[None]:
    """Call `listener` with what every self-attention of a model with patterns looks at, for a while. dense: all pairs are computed meanwhile."""
    heard = (listener, dense)
    _LISTENERS.append(heard)
    try:
        yield
    finally:
        _LISTENERS.remove(heard)


def register() -> None:
    """Make "lissome" an attention implementation of transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    # torch.compile calls both as they are: a selection is made in plain code for each length, and the kernel takes addresses.
    AttentionInterface.register(NAME, torch.compiler.disable(attention))  # type: ignore[no-untyped-call]
    AttentionMaskInterface.register(NAME, torch.compiler.disable(mask))  # type: ignore[no-untyped-call]


def mask(
    *args: Any,
    attention_mask: torch.Tensor | None = None,
    kv_length: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    config: Any = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The padding mask as it is, [batch, keys] bool, or the documents of a packed row, [batch, keys] int32; None without either.

    Nothing of the size of all pairs is made. Raises BadModel where the model hides what patterns do not know of (`masks`), or for a cache of fixed size.
    """
    _not_exporting()
    who = type(config).__name__
    documents = masks.documents(mask_function, kv_offset + kv_length, who)
    if "q_length" in kwargs and mask_function is not None and not any("bidirectional" in name for name, _ in masks.parts(mask_function)):
        asked = int(kwargs.get("q_offset", 0)) + kwargs["q_length"]
        if asked != kv_offset + kv_length:
            raise BadModel(
                f"there are {kv_offset + kv_length:,} keys for tokens that end at {asked:,}: the cache has a fixed size, or the mask is of another length",
                where=who,
                do="use a DynamicCache (generate without cache_implementation), and a mask as long as the tokens",
            )
    if documents is not None:
        return documents.int()
    if attention_mask is None or attention_mask.ndim != 2 or attention_mask.shape[1] < kv_length:
        return attention_mask  # what does not fit, attention refuses
    attention_mask = attention_mask[:, -kv_length:].bool() if kv_length else attention_mask.bool()
    return None if bool(attention_mask.all()) else attention_mask


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query [batch, heads, queries, dim], key and value [batch, kv_heads, keys, dim] -> [batch, queries, heads, dim]."""
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    pattern = pattern_of(module)
    across = not causal and (getattr(module, "is_decoder", False) or query.shape[2] != key.shape[2])  # a decoder that looks at an encoder
    learned: dict[str, Any] = {word: getattr(module, word, None) for word in ("indexer", "importance")}
    who = f"layer {getattr(module, 'layer_idx', None)}, {type(module).__name__}"
    documents = masks.told(attention_mask, query, key)
    masks.check_asked(kwargs, key.shape[2], causal, who)
    if not across:
        masks.check_positions(getattr(module, "config", None), key.shape[2], kwargs.get("position_ids"), who)
    if _LISTENERS and not across:
        sight = dataclasses.replace(Past().look(query, key, causal, **learned), known=None, documents=documents)
        for listener, _ in _LISTENERS:
            listener(module, sight, scaling)
    if pattern is None or across or any(dense for _, dense in _LISTENERS):
        return dense(query, key, value, attention_mask, scaling, causal and not across), None
    _not_exporting()
    if query.dtype != value.dtype:  # autocast casts what torch's attention is given, and some models normalise queries and keys in float32
        query, key = query.to(value.dtype), key.to(value.dtype)
    if dropout:
        raise BadConfig(f"attention dropout of {dropout:g} is not offered by sparse attention", do="set the model's attention dropout to 0")
    past, goes_on = past_of(module) if causal else (Past(), False)
    sight = past.look(query, key, causal, goes_on=goes_on, **learned)
    out = attend(query, key, value, selected(pattern, sight, documents), scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def _before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a model runs: what is longer than its table of positions fails there, before it comes to attention."""
    given = next((one for one in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1]) if isinstance(one, torch.Tensor)), None)
    config: Any = module.config
    if given is None or config._attn_implementation != NAME:
        return
    length = given.shape[-2 if given.is_floating_point() else -1]
    cache: Any = kwargs.get("past_key_values")
    length += cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
    table = getattr(getattr(module, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)  # places of RoBERTa and its kin begin after that of padding
    masks.check_positions(config, length, kwargs.get("position_ids"), type(module).__name__, 0 if padding is None else padding + 1)


def _not_exporting() -> None:
    if torch.compiler.is_exporting():
        raise BadModel("sparse attention runs in torch alone and cannot be exported", do="export the dense model, or run this one with torch")


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padding: torch.Tensor | None, scale: float | None, causal: bool) -> torch.Tensor:
    """All pairs, by torch: shapes as `attention` has them -> [batch, queries, heads, dim].

    padding: [batch, keys] bool (True: a token), or int32, the document of each.
    """
    queries, keys = q.shape[2], k.shape[2]
    if padding is None or padding.dtype == torch.bool:
        seen = None if padding is None else padding[:, None, None, :].expand(-1, 1, queries, -1)
    else:
        seen = (padding[:, -queries:, None] == padding[:, None, :])[:, None]
    if causal and (seen is not None or queries not in (1, keys)):
        past = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        seen = past if seen is None else seen & past
    if seen is not None:
        seen = seen | ~seen.any(-1, keepdim=True)  # a row without keys would be NaN; it is padding, and nothing reads it
    whole = causal and seen is None and queries > 1
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=whole, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).contiguous()


def pattern_of(module: torch.nn.Module) -> Pattern | None:
    """The pattern of an attention module; None for dense."""
    written = _written(module)
    return None if written is None else _parsed(written)


def _written(module: torch.nn.Module) -> str | None:
    """The pattern of a layer as text; None for dense."""
    written = getattr(getattr(module, "config", None), FIELD, None)
    if written is None or isinstance(written, str):
        return written
    index = getattr(module, "layer_idx", None)
    if index is None:
        raise BadModel(f"{type(module).__name__} does not know which layer it is, so it cannot have a pattern of its own", do="give one pattern for all layers")
    found: str | None = written[index]
    return found


_parsed = functools.lru_cache(maxsize=256)(parse)
