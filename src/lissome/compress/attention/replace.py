"""A model and its sparse self: one set of weights, two ways of attention."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.compress.attention.fitted import only
from lissome.compress.batches import forward
from lissome.core.errors import BadModel
from lissome.core.model import Model
from lissome.nn.attention.in_transformers import FIELD, use
from lissome.nn.load import as_model, finished

TOLERANCE = 1e-3
"""Largest difference of outputs, as a share of the largest output, at which two ways of computing the same attention count as one."""


def transformers_model(model: Model) -> Model:
    """The model as one that transformers itself can build, so that patterns can be saved with it. Raises BadModel where it is none, or is sparse already."""
    if model.architecture.kind != "huggingface":
        model = dataclasses.replace(as_model(model.module, model.ref), directory=model.directory)
    config: Any = getattr(model.module, "config", None)
    if model.architecture.kind != "huggingface" or config is None:
        raise BadModel(
            f"{type(model.module).__name__} is no transformers model, so its attention cannot be given patterns.",
            where=model.ref,
            expected="a model of a class that transformers has",
        )
    if getattr(config, FIELD, None) is not None:
        raise BadModel("the model has sparse attention already, so there is no dense self to hold it to.", where=model.ref, do="give the dense original")
    if getattr(config, "is_encoder_decoder", False):
        raise BadModel("the model has an encoder and a decoder; a pattern per layer is offered for models with one of them.", where=model.ref)
    return model


def sharing(module: nn.Module) -> Any:
    """A copy of a transformers module with its own configuration and the same weights in memory."""
    held = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in held})


def sparse_self(model: Model, example: Mapping[str, Any]) -> Any:
    """The model's module with lissome's attention and no pattern yet, sharing its weights.

    example: a batch of one, on which both must give the same outputs. Raises BadModel for a model whose attention cannot be replaced.
    """
    twin = sharing(model.module)
    layers = getattr(twin.config, "num_hidden_layers", None)
    if layers is None:
        raise BadModel(f"{type(twin).__name__} does not say how many layers it has (num_hidden_layers).", where=model.ref)
    use(twin, [None] * layers)
    with torch.no_grad():
        before, after = forward(model.module, example), forward(twin, example)
    if not torch.allclose(before, after, rtol=0, atol=TOLERANCE * max(1.0, float(before.abs().max()))):
        raise BadModel(
            f"{type(twin).__name__} computes something else when lissome computes its attention: outputs differ by {float((before - after).abs().max()):.2g}. "
            "It adds something to the scores (a bias, a soft cap) or has windows of its own.",
            where=model.ref,
            do="use a model with plain attention",
        )
    return twin


def with_plan(model: Model, module: Any, plan: Sequence[str | None], scorers: Path | None = None) -> Model:
    """A Model of `module` with the plan in use. model: what it was made of, for its name and its tokenizer's folder.

    scorers: the folder of `fitted`. The module then holds those that the plan names and no others, as the model does that is written and read again.
    """
    use(module, list(plan))
    if scorers:
        only(module, scorers, plan)  # in place of fresh ones
    config = json.loads(module.config.to_json_string(use_diff=False))
    return finished(module, model.architecture.model_copy(update={"config": config}), model.ref, model.directory)
