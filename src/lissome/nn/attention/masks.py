"""What transformers says besides queries and keys: documents and padding are honoured, and what no pattern knows of is refused, never left out in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from lissome.core.errors import BadModel, BadTensor

UNKNOWN = {
    "softcap": "caps its scores",
    "s_aux": "has learned sinks",
    "sinks": "has learned sinks",
    "position_bias": "adds a bias for positions to its scores",
    "indices": "chooses its keys itself",
    "block_indices": "chooses its blocks itself",
}
"""What models hand their attention function and a pattern's attention does not compute."""
STRETCHED = {"dynamic", "linear", "yarn"}
"""Ways of scaling rotary positions that go beyond `max_position_embeddings`."""


def documents(function: Callable[..., Any] | None, length: int, who: str) -> torch.Tensor | None:
    """The documents that a mask function of transformers keeps apart, [batch, keys]; None where it hides nothing but the future.

    length: keys from the first of all on. Raises BadModel where it hides or shows something else.
    """
    found: torch.Tensor | None = None
    for name, inside in [] if function is None else parts(function):
        width = inside.get("sliding_window", inside.get("chunk_size", 0))
        if name == "packed_sequence_mask_function":
            found = inside["packed_sequence_mask"]
        elif name in ("sliding_window_overlay", "sliding_window_bidirectional_overlay", "chunked_overlay"):
            if length > width + ("bidirectional" in name):
                raise _slides(width, length, who)
        elif name not in ("causal_mask_function", "bidirectional_mask_function"):
            raise BadModel(
                f"its attention is masked by {name}, which patterns do not know",
                where=who,
                expected="causal or both ways, documents in a row, padding",
                do='use another model, or its dense attention: model.set_attn_implementation("sdpa")',
            )
    return found


def parts(function: Callable[..., Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, what it closes over) of the functions that a mask function of transformers demands all of.

    They are put together as closures, and nothing else tells what a model hides without asking for every pair.
    """
    code = getattr(function, "__code__", None)
    inside = dict(zip(code.co_freevars, (cell.cell_contents for cell in function.__closure__ or ()), strict=True)) if code else {}
    name = getattr(function, "__qualname__", repr(function)).split(".")[0]
    if getattr(function, "__module__", "") != "transformers.masking_utils":
        yield f"{name} of {getattr(function, '__module__', 'its own')}", inside
    elif name == "and_masks":
        for one in inside["mask_functions"]:
            yield from parts(one)
    elif name == "remap_positions_for_packed_sequence":  # within a document, positions rise as places do
        yield from parts(inside["mask_function"])
    else:
        yield name, inside


def told(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """The document of each key [batch, keys] int64, -1 for padding, of a mask of bool (True: a token) or of int32 (documents). Raises BadTensor for others."""
    if mask is None:
        return None
    shape = (key.shape[0], key.shape[2])
    if tuple(mask.shape) != shape or mask.dtype not in (torch.bool, torch.int32):
        raise BadTensor(
            f"a mask must be [batch, keys] = {list(shape)}, and this one is {list(mask.shape)} {str(mask.dtype).removeprefix('torch.')}",
            expected="1 for a token and 0 for padding; the pattern says which pairs are seen",
            do=f"leave pairs out of the mask: packed documents are told by position_ids that begin again at 0 (use_cache=False), {_dense()}",
        )
    return torch.where(mask, 0, -1) if mask.dtype == torch.bool else mask.long()


def check_asked(asked: dict[str, Any], keys: int, causal: bool, who: str) -> None:
    """Raise BadModel for what a model hands its attention function and a pattern's attention would leave out."""
    for name, what in UNKNOWN.items():
        if asked.get(name) is not None:
            raise BadModel(f"this attention {what} ({name}), which sparse attention does not", where=who, do=f"use another model, {_dense()}")
    width = asked.get("sliding_window")
    if isinstance(width, int) and keys > width + (not causal):
        raise _slides(width, keys, who)


def check_positions(config: Any, length: int, places: torch.Tensor | None, who: str, kept: int = 0) -> None:
    """Raise BadTensor where `length` tokens, or the places that they are given, are more than the config's positions, of which `kept` are never taken."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or not 0 < limit - kept < length or STRETCHED & _scalings(config):
        return
    if places is not None:
        length = int(places.max()) + 1
    if length > limit - kept:
        raise BadTensor(f"{length:,} tokens are more than the {limit - kept:,} positions of {who}", do="cut the input, or take a model made for longer ones")


def _scalings(config: Any) -> set[str]:
    """How rotary positions are scaled, in one way or in one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return {str(one.get("rope_type", one.get("type"))) for one in (rope, *rope.values()) if isinstance(one, dict)}


def _slides(width: int, length: int, who: str) -> BadModel:
    return BadModel(
        f"its window of {width:,} tokens hides some of {length:,} keys, and the pattern would show them",
        where=who,
        do=f'give at most {width:,} tokens, or load it without (sliding_window None, all layer_types full) and give these layers the pattern "window({width})"',
    )


def _dense() -> str:
    return 'or its dense attention: model.set_attn_implementation("sdpa")'
