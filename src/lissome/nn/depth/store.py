"""Models with exits as folders that `load_model` opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lissome.core.errors import BadModel
from lissome.core.model import Architecture, Model
from lissome.core.trust import check_target
from lissome.nn.depth.complexity import Complexity
from lissome.nn.depth.exits import Exits
from lissome.nn.depth.heads import ExitHead
from lissome.nn.factory import call_factory
from lissome.nn.load import finished, from_config, save_model
from lissome.nn.resize import resize

TARGET = "lissome.nn.depth.store:reopened"


def as_exits_model(exits: Exits, trunk: Model) -> Model:
    """The Model of `exits`, whose module was built as `trunk` says. Raises BadModel for a trunk that could not be built again."""
    kind = trunk.architecture
    if kind.kind == "exported":
        why = "it came as a module in memory"
        raise BadModel(f"a model with exits could not be built again: {why}", where=trunk.ref, do="give a Hugging Face model or package.module:factory")
    config = {"trunk": kind.model_dump(mode="json"), "exits": exits.spec()}
    return finished(exits, Architecture(kind="factory", target=TARGET, config=config), trunk.ref, trunk.directory)


def save_exits(model: Model, folder: Path) -> None:
    """Write a model that `as_exits_model` made; the trunk's config.json is put beside it, since tokenizers are read with it."""
    save_model(model, folder)
    trunk = model.architecture.config["trunk"]
    if trunk["kind"] == "huggingface":
        (folder / "config.json").write_text(json.dumps(trunk["config"], indent=1), encoding="utf-8")


def reopened(trunk: Mapping[str, Any], exits: Mapping[str, Any]) -> nn.Module:
    """A model with exits as `save_exits` described it, its weights yet to be loaded. Code that the description names must have been named by the user."""
    try:
        kind = Architecture.model_validate(trunk)
        heads = {int(at): ExitHead(**spec) for at, spec in exits["heads"].items()}
        complexity = Complexity(**exits["complexity"]) if exits["complexity"] else None
    except (ValueError, TypeError, KeyError) as error:
        raise BadModel(f"the description of the exits is broken: {error}", do="copy the whole folder again, or run `lissome exits` again") from error
    made = Exits(_trunk(kind), heads, rule=exits["rule"], blocks=exits["blocks"], complexity=complexity, fixed=exits.get("fixed", ()))
    return made.eval()


def _trunk(kind: Architecture) -> nn.Module:
    if kind.kind == "huggingface":
        return from_config(kind.target, kind.config, kind.resize)
    if kind.kind == "exported":
        raise BadModel(f"{kind.target} came as a module in memory, so it cannot be built again", do="give a factory: package.module:function")
    check_target(kind.target, "the model with exits", BadModel)
    made = call_factory(kind.target, kind.config)
    module = made.module if isinstance(made, Model) else made
    if kind.resize:
        resize(module, kind.resize)
    return module
