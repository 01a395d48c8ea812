"""What lies inside a module: its blocks, its attention projections, and the outputs of named modules while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lissome.core.errors import BadModel
from lissome.nn.depth.blocks import largest_list

PROJECTIONS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))
"""Names of the three linear projections in transformers' attention modules: BERT, RoBERTa and ELECTRA; ViT and Llama; DistilBERT; MPNet."""

_HEADS = ("num_attention_heads", "n_heads", "num_heads")


@dataclass(frozen=True)
class Attention:
    """One attention module whose projections can be listened to.

    name: of the module. query, key, value: names of its projections. heads: of the queries, or None where the module does not tell. exact: whether
    the projections alone give its attention distributions (not so with rotary or relative positions, grouped or causal heads).
    """

    name: str
    query: str
    key: str
    value: str
    heads: int | None
    scale: float
    exact: bool


def blocks(module: nn.Module) -> list[str]:
    """Names of the module's blocks in order: the children of the ModuleList (else Sequential) that holds the most parameters."""
    largest = largest_list(module, least=1)
    if largest is None:
        return []
    prefix, found = largest
    return [f"{prefix}.{name}" if prefix else name for name, _ in found.named_children()]


def attentions(module: nn.Module) -> list[Attention]:
    """The module's attention modules in order, found by the names of their projections."""
    found = []
    rotary = any("rotary" in name or "relative" in name for name, _ in module.named_modules())
    for name, layer in module.named_modules():
        names = next((three for three in PROJECTIONS if all(isinstance(getattr(layer, one, None), nn.Linear) for one in three)), None)
        if names is None:
            continue
        queries, keys = getattr(layer, names[0]).out_features, getattr(layer, names[1]).out_features
        heads = _heads(layer, queries)
        exact = heads is not None and queries == keys and not rotary and not getattr(layer, "is_causal", False)
        scale = getattr(layer, "scaling", None)
        scale = float(scale) if isinstance(scale, int | float) else (queries // (heads or 1)) ** -0.5
        query, key, value = (f"{name}.{one}" if name else one for one in names)
        found.append(Attention(name, query, key, value, heads, scale, exact))
    return found


def _heads(layer: nn.Module, width: int) -> int | None:
    """How many query heads an attention module has: from the size of one, which pruning leaves alone, else from their number."""
    size = getattr(layer, "attention_head_size", None) or getattr(layer, "head_dim", None) or getattr(layer, "attention_head_dim", None)
    if isinstance(size, int) and size and width % size == 0:
        return width // size
    held: Any = getattr(layer, "config", None)
    numbers = [getattr(owner, name, None) for owner in (layer, held) for name in _HEADS]
    return next((n for n in numbers if isinstance(n, int) and n and width % n == 0), None)


def evenly(student: Sequence[str], teacher: Sequence[str]) -> list[tuple[str, str]]:
    """Each of the student's blocks with one of the teacher's, evenly spread, the last with the last."""
    return [(name, teacher[max(0, -(-(i + 1) * len(teacher) // len(student)) - 1)]) for i, name in enumerate(student)]


@contextlib.contextmanager
def listening(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Within the context, the dict holds the last output of each named module ("" is the module itself). Raises BadModel for an unknown name."""
    heard: dict[str, torch.Tensor] = {}
    known = dict(module.named_modules())
    missing = next((name for name in names if name not in known), None)
    if missing is not None:
        raise BadModel(f'{type(module).__name__} has no module called "{missing}".', expected="a name from named_modules()", do="correct `layers`")

    def hook(name: str) -> Any:
        def hear(_: nn.Module, __: Any, output: Any) -> None:
            heard[name] = _first_tensor(output, name)

        return hear

    handles = [known[name].register_forward_hook(hook(name)) for name in names]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(output: Any, name: str) -> torch.Tensor:
    """The output itself, the first of a tuple, or a model output's first field."""
    if isinstance(output, torch.Tensor):
        return output
    values = list(output.values()) if hasattr(output, "values") else list(output) if isinstance(output, tuple | list) else []
    if values and isinstance(values[0], torch.Tensor):
        return values[0]
    raise BadModel(f'the module "{name}" returns {type(output).__name__}, which holds no tensor to compare.', do="pair other modules in `layers`")
