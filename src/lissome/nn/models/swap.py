"""Parts swapped on a model that is built; weights go over where names and shapes fit, and what is new is listed.

found = swap(model, "attention", {"kind": "sparse", "pattern": "window(256) | sink(64)"})
train_only(found.model, found.new)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lissome.core.errors import BadConfig, BadInput, BadModel, closest
from lissome.core.model import Model
from lissome.nn.models.assembly import ModularModel, assemble, made_of_parts
from lissome.nn.models.config import ModelConfig, grouped, model_config, part_of
from lissome.nn.models.parts import Part, kinds, schema

IN_BLOCKS = ("attention", "ffn", "norm")


@dataclass(frozen=True)
class Carried:
    """new: parameters of the model that got no weights, by their first name. left: given weights that the model has no place of that name and shape for."""

    new: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True)
class Swapped:
    """A model with a part swapped. new: parameters that start fresh, which `train_only` takes. left: weights of the old model that found no place."""

    model: ModularModel
    new: tuple[str, ...]
    left: tuple[str, ...]


def swap(
    model: nn.Module | Model, role: str, part: Part | str | Mapping[str, Any] | None, *, layers: Sequence[int] | None = None, name: str | None = None
) -> Swapped:
    """A copy of `model` with another part; the model itself stays as it was.

    role: "attention", "ffn", "norm" (of blocks), "embedding", "positions", or "head". part: a kind, or a kind with options; options that are not given are
    the old part's, where the new kind has them too. layers: of these blocks alone. name: of the head; a new name adds a head, and None as part removes it.

    Weights go over by name and shape alone: what fits is taken for the same thing. Raises BadModel for a model that is not put together from parts,
    BadConfig for parts and options that do not exist or do not fit, BadInput for layers and heads that are not there.
    """
    old = made_of_parts(model.module if isinstance(model, Model) else model, "swap")
    made = assemble(swapped_config(old.config, role, part, layers=layers, name=name))
    first = next(old.parameters())
    made.to(device=first.device, dtype=first.dtype)
    carried = carry(made, old.state_dict())
    return Swapped(made.train(old.training), carried.new, carried.left)


def swapped_config(
    config: ModelConfig, role: str, part: Part | str | Mapping[str, Any] | None, *, layers: Sequence[int] | None = None, name: str | None = None
) -> ModelConfig:
    """The config with another part, as `swap` takes it."""
    kinds(role)
    if layers is not None and role not in IN_BLOCKS:
        raise BadInput(f"{role} is not a part of single blocks", expected=f"layers go with {', '.join(IN_BLOCKS)}")
    if (name is not None) != (role == "head"):
        raise BadInput("a head goes by its name" if role == "head" else f"{role} has no name", do='swap(model, "head", part, name="topic")')
    if role == "head":
        assert name is not None
        return _with_head(config, name, part)
    if part is None:
        raise BadInput(f"a model cannot be without {role}", expected=", ".join(kinds(role)))
    if role not in IN_BLOCKS:
        return _checked(config.model_copy(update={role: _merged(role, part, getattr(config, role))}))
    blocks = config.layers()
    for at in range(len(blocks)) if layers is None else layers:
        if not 0 <= at < len(blocks):
            raise BadInput(f"there is no block {at}", expected=f"0 to {len(blocks) - 1}")
        blocks[at] = blocks[at].model_copy(update={role: _merged(role, part, getattr(blocks[at], role))})
    return _checked(config.model_copy(update={"blocks": grouped(blocks)}))


def carry(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Carried:
    """Copy `weights` into the model's parameters and buffers of the same name and shape; of several for one tied tensor the first stays, and those that differ
    are left. Raises BadModel if not one of them fits.
    """
    places = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in places and places[name].shape == value.shape}
    if weights and not fitting:
        here, there = next(iter(places.items())), next(iter(weights.items()))
        raise BadModel(
            f"none of the {len(weights)} weights fits this model by name and shape; the first is {there[0]} {list(there[1].shape)}.",
            expected=f"such as {here[0]} {list(here[1].shape)}",
            do="give the weights of a model of the same parts, or take a Hugging Face model over with from_transformers",
        )
    filled: set[int] = set()
    lost: set[str] = set()
    with torch.no_grad():
        for name, value in fitting.items():
            place = places[name]
            if place.numel() and place.data_ptr() in filled and not torch.equal(place, value.to(place)):
                lost.add(name)  # two names of one tensor, such as a tied head's, cannot hold two values
                continue
            place.copy_(value)
            if place.numel():
                filled.add(place.data_ptr())
    new = [name for name, parameter in model.named_parameters() if parameter.data_ptr() not in filled]
    return Carried(tuple(new), tuple(name for name in weights if name not in fitting or name in lost))


def train_only(model: nn.Module, new: Iterable[str]) -> tuple[str, ...]:
    """Let only the parameters `new` learn (names, or names of modules, such as "heads.topic"), and freeze all others; returns the names that learn.

    Works with `train`, which takes what has requires_grad. Raises BadInput for a name that the model does not have, or if nothing is left to learn.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    wanted: set[int] = set()
    for name in new:
        found = [parameter for full, parameter in named.items() if full == name or full.startswith(f"{name}.")]
        if not found:
            raise BadInput(f'the model has no parameter or part "{name}".{closest(name, list(named))}', expected="names as model.named_parameters() gives them")
        wanted.update(map(id, found))
    if not wanted:
        raise BadInput("there is nothing new to train: every weight was carried over", do="name what should learn, such as train_only(model, ['heads'])")
    for parameter in named.values():
        parameter.requires_grad_(id(parameter) in wanted)
    return tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def _with_head(config: ModelConfig, name: str, part: Part | str | Mapping[str, Any] | None) -> ModelConfig:
    heads: dict[str, Part] = dict(config.heads)
    if part is None:
        if name not in heads:
            raise BadInput(f'the model has no head "{name}".{closest(name, list(heads))}', expected=", ".join(heads) or "no head is there")
        del heads[name]
    else:
        heads[name] = _merged("head", part, heads.get(name))
    return _checked(config.model_copy(update={"heads": heads}))


def _merged(role: str, part: Part | str | Mapping[str, Any], old: Part | None) -> Part:
    """The new part, with the old one's options where they are not given and the new kind has them."""
    if isinstance(part, Part):
        return part_of(role, part)
    given: dict[str, Any] = {"kind": part} if isinstance(part, str) else dict(part)
    if "kind" not in given and old is not None:
        given["kind"] = old.kind
    kind = given.get("kind")
    if old is None or not isinstance(kind, str) or kind not in kinds(role):
        return part_of(role, given)  # which says what is wrong, if anything is
    form = schema(role, kind).model_fields
    kept = {name: value for name, value in old.options.items() if name in form}
    try:
        return part_of(role, {**kept, **given})
    except BadConfig:  # an option of the same name may mean another thing in the new kind
        return part_of(role, given)


def _checked(config: ModelConfig) -> ModelConfig:
    return model_config(config.model_dump(mode="json"))
