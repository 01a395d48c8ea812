"""Layers of experts in models whose code knows nothing of them: put in the place of feed-forward networks, noted in the configuration, restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic
from torch import nn

from lissome.core.errors import BadModel
from lissome.nn.models.assembly import ModularModel
from lissome.nn.moe.config import MoEConfig
from lissome.nn.moe.layer import MoE

FIELD = "lissome_experts"
"""Where a model's configuration holds them: name of the module that a layer of experts stands for -> its width and its MoEConfig."""


def put_experts(model: nn.Module, layers: Mapping[str, MoE]) -> nn.Module:
    """Put layers of experts in the places of the modules of those names, in place, and note it in the model's configuration where it has one.

    Raises BadModel for a model that is put together from parts: its config names them.
    """
    if isinstance(model, ModularModel):
        raise BadModel("a model of parts names its experts as a part", do='swap(model, "ffn", {"kind": "experts", "neurons": 256})')
    for name, layer in layers.items():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, layer)
    config: Any = getattr(model, "config", None)
    if config is not None:
        noted = {name: {"width": layer.width, **layer.config.model_dump(mode="json")} for name, layer in layers.items()}
        setattr(config, FIELD, {**(getattr(config, FIELD, None) or {}), **noted})
    return model


def restore(model: nn.Module) -> nn.Module:
    """Give a freshly built model the (untrained) layers of experts that its configuration names; their weights are to be loaded. Raises BadModel."""
    noted: Any = getattr(getattr(model, "config", None), FIELD, None)
    if not noted:
        return model
    made = {}
    for name, values in noted.items():
        try:
            model.get_submodule(name)
            made[name] = MoE(int(values["width"]), MoEConfig(**{key: value for key, value in values.items() if key != "width"}))
        except (AttributeError, KeyError, TypeError, ValueError, pydantic.ValidationError) as error:
            raise BadModel(
                f'its experts in the place of "{name}" cannot be built: {str(error).splitlines()[0]}',
                where=f"config.json, {FIELD}",
                expected="what `lissome split-experts` wrote",
                do="copy the whole folder again",
            ) from error
    return put_experts(model, made)
