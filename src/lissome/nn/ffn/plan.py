"""A transformers model whose feed-forward parts have another activation, or a threshold per layer; the plan is saved with its configuration.

use(model, ActivationPlan(activation="relu", thresholds=(0.0, 0.1)))
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import field_validator
from torch import nn

from lissome.core.config import Config
from lissome.core.errors import BadConfig, BadModel
from lissome.nn.ffn.activation import Thresholded, activated, check_threshold, silenced

FIELD = "lissome_activation"
"""Where a model's configuration holds its plan."""
SHAPES: Mapping[str, tuple[str, ...]] = {"act_fn": ("down_proj", "up_proj"), "intermediate_act_fn": ("dense",), "activation": ("lin1", "lin2")}
"""Name of the activation -> names beside it, by which a feed-forward part is known: Llama, BERT and ViT, DistilBERT."""


class ActivationPlan(Config):
    """What the feed-forward parts compute.

    activation: "same" keeps the model's own. on: what a threshold is held against: |act(gate)|, or |act(gate) * up| of gated parts. thresholds: one for each
    layer; none: 0 everywhere, which silences exact zeros alone.
    """

    activation: Literal["same", "relu", "relu2"] = "same"
    on: Literal["gate", "product"] = "gate"
    thresholds: tuple[float, ...] = ()

    @field_validator("thresholds")
    @classmethod
    def _sizes(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for at, one in enumerate(value):
            if not (one >= 0 and one < float("inf")):
                raise ValueError(f"layer {at} has a threshold of {one}; give 0 or more, and finite")
        return value


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward part. module: where the activation hangs, as `act`; gated: whether there is a gate beside `up`; down: of gated parts."""

    name: str
    module: nn.Module
    act: str
    gated: bool

    @property
    def down(self) -> nn.Module:
        """What reads the product."""
        return self.module.get_submodule("down_proj")

    @property
    def sizes(self) -> tuple[int, int]:
        """Width of the inputs, and neurons."""
        first: Any = self.module.get_submodule("gate_proj" if self.gated else SHAPES[self.act][-1 if self.act == "act_fn" else 0])
        return first.in_features, first.out_features


def feed_forwards(model: nn.Module) -> list[FeedForward]:
    """The feed-forward parts, first layer first. Raises BadModel where there is none that is known."""
    found = []
    for name, module in model.named_modules():
        for act, beside in SHAPES.items():
            if callable(getattr(module, act, None)) and all(isinstance(getattr(module, one, None), nn.Module) for one in beside):
                found.append(FeedForward(name, module, act, hasattr(module, "gate_proj")))
    if not found:
        raise BadModel(
            f"{type(model).__name__} has no feed-forward part that is known here, so there are no activations to make sparse.",
            expected="a Llama-, BERT-, ViT- or DistilBERT-shaped model",
            do='in a model of parts take the kind "thresholded": swap(model, "ffn", {"kind": "thresholded", "threshold": 0.1})',
        )
    return found


def use(model: Any, plan: ActivationPlan) -> Any:
    """Give the feed-forward parts of a model the plan's activations and thresholds, in place, and return it. What an earlier plan did is undone.

    Raises BadConfig for thresholds that do not fit the layers, BadModel where there are no feed-forward parts, or none with a gate for "product".
    """
    parts = feed_forwards(model)
    thresholds = plan.thresholds or (0.0,) * len(parts)
    if len(thresholds) != len(parts):
        raise BadConfig(f"{len(thresholds)} thresholds for {len(parts)} feed-forward parts", expected="one for each")
    if plan.on == "product" and not all(part.gated for part in parts):
        raise BadModel(
            f'{type(model).__name__} has feed-forward parts without a gate, so there is no product with one ("{parts[0].name}").', do='use on="gate"'
        )
    for part, threshold in zip(parts, thresholds, strict=True):
        check_threshold(threshold, part.name)
        own = _own(part)
        act = own if plan.activation == "same" else activated(plan.activation)
        _put(part, Thresholded(act, threshold if plan.on == "gate" else 0.0))
        getattr(part.module, part.act).own = own
        _hold_product(part, threshold if plan.on == "product" else None)
    if hasattr(model, "config"):
        setattr(model.config, FIELD, plan.model_dump(mode="json"))
    return model


def restore(model: Any) -> Any:
    """Give a model that was just loaded the plan that its configuration names. Raises BadModel for a plan that is none."""
    try:
        return use(model, ActivationPlan.model_validate(getattr(model.config, FIELD)))
    except (ValueError, BadConfig) as error:
        raise BadModel(f"its configuration's {FIELD} is no plan for it: {' '.join(str(error).split())}", expected="what `use` wrote there") from error


def plan_of(model: Any) -> ActivationPlan | None:
    """The plan in use, or None."""
    written = getattr(getattr(model, "config", None), FIELD, None)
    return None if written is None else ActivationPlan.model_validate(written)


@contextlib.contextmanager
def watching(model: nn.Module, see: Callable[[int, torch.Tensor], None], on: Literal["gate", "product"] = "gate") -> Iterator[None]:
    """Call see(layer, values [..., neurons]) with what a threshold is held against, after the layer's own threshold was."""
    handles = []
    for at, part in enumerate(feed_forwards(model)):
        if on == "product":
            handles.append(part.down.register_forward_pre_hook(lambda _, args, at=at: see(at, args[0])))
        else:
            act = getattr(part.module, part.act)
            if not isinstance(act, nn.Module):
                raise BadModel(f'the activation of "{part.name}" is a plain function, which cannot be watched', do="call use(model, ActivationPlan()) first")
            handles.append(act.register_forward_hook(lambda _, __, output, at=at: see(at, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def replace_activations(model: nn.Module, make: Callable[[int, Any], nn.Module]) -> Sequence[nn.Module]:
    """Put make(layer, what the layer has) in place of every activation; what was put there, in order."""
    made = []
    for at, part in enumerate(feed_forwards(model)):
        now = getattr(part.module, part.act)
        one = make(at, now.act if isinstance(now, Thresholded) else now)
        one.own = _own(part)
        _put(part, one)
        made.append(one)
    return made


def _own(part: FeedForward) -> Any:
    """The activation that the part was built with."""
    now = getattr(part.module, part.act)
    return getattr(now, "own", now.act if isinstance(now, Thresholded) else now)


def _put(part: FeedForward, act: nn.Module) -> None:
    delattr(part.module, part.act)
    setattr(part.module, part.act, act)


class _Silence:
    """Sets small inputs of a module to 0."""

    def __init__(self, threshold: float):
        self.threshold = threshold

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (silenced(args[0], self.threshold), *args[1:])


def _hold_product(part: FeedForward, threshold: float | None) -> None:
    """A threshold in front of `down`, or none."""
    if not part.gated:
        return
    hooks = part.down._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, _Silence)]:
        del hooks[key]
    if threshold is not None:
        part.down.register_forward_pre_hook(_Silence(threshold), prepend=True)
