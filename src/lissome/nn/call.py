"""How a module is called: named arrays in, one tensor of outputs out, whatever the module's own convention is."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from lissome.core.errors import BadModel

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def accepted(module: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """The inputs of a batch that `module` takes, in the batch's order.

    A module whose forward names none of them is called with all of them by position (a plain CNN's `forward(x)`), one that only takes
    `**inputs` with all of them by name. Raises BadModel when a required input is not there, or the numbers do not agree.
    """
    parameters = _parameters(module)
    if _only_keywords(parameters):
        return names
    named = tuple(name for name in names if any(p.name == name and p.kind in _BY_NAME for p in parameters))
    if not named:
        _check_count(parameters, names)
        return names
    missing = [p.name for p in parameters if p.default is p.empty and p.kind in (*_BY_POSITION, *_BY_NAME) and p.name not in named]
    if missing:
        raise BadModel(
            f"the model needs the input {missing[0]!r}, which the task does not give.",
            expected=f"inputs {', '.join(names)}",
            do="name the inputs in the task (`inputs:` for text tasks), or wrap the model",
        )
    return named


def by_name(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether `names` (as `accepted` gave them) go in by name."""
    parameters = _parameters(module)
    return _only_keywords(parameters) or all(any(p.name == name and p.kind in _BY_NAME for p in parameters) for name in names)


def output_tensor(output: Any) -> torch.Tensor:
    """The one tensor that matters: the output itself, its `logits`, or the first of a tuple. Raises BadModel."""
    if isinstance(output, torch.Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        return logits
    if isinstance(output, tuple) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    raise BadModel(
        f"the model returns {type(output).__name__}, in which no output tensor was found.",
        expected="a tensor, or something with .logits",
        do="use a model with a task head, such as BertForSequenceClassification",
    )


def call(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Outputs of `module` on named inputs; inputs it does not take are left out."""
    names = accepted(module, tuple(inputs))
    if by_name(module, names):
        return output_tensor(module(**{name: inputs[name] for name in names}))
    return output_tensor(module(*(inputs[name] for name in names)))


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Let torch's own encoder layers call the layers in them.

    In eval mode and without gradients nn.TransformerEncoderLayer and nn.MultiheadAttention read their weights and run one fused kernel instead ("fast
    path"): no hook sees a layer then, no layer put in another's place runs, and a trace holds one opaque operator.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class Positional(nn.Module):
    """`module` with positional inputs in the order of `names` and one output tensor: the form every exporter takes."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.module, self.names = module, names
        self.keywords = by_name(module, names)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Outputs for inputs in the order of `names`."""
        if self.keywords:
            return output_tensor(self.module(**dict(zip(self.names, inputs, strict=True))))
        return output_tensor(self.module(*inputs))


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    return list(inspect.signature(module.forward).parameters.values())


def _only_keywords(parameters: list[inspect.Parameter]) -> bool:
    return bool(parameters) and all(p.kind is p.VAR_KEYWORD for p in parameters)


def _check_count(parameters: list[inspect.Parameter], names: tuple[str, ...]) -> None:
    """Raise unless as many inputs as `names` can go in by position."""
    places = [p for p in parameters if p.kind in _BY_POSITION]
    least = sum(p.default is p.empty for p in places)
    most = float("inf") if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(places)
    if not least <= len(names) <= most:
        raise BadModel(
            f"the model's forward takes ({', '.join(p.name for p in places)}), the task gives ({', '.join(names)}).",
            expected="the same number of inputs, or the same names",
            do="name the inputs in the task (`inputs:` for text tasks), or wrap the model",
        )
