"""Models of parts in folders that `load_model`, and so every verb, takes: `architecture.json` is the config, `model.safetensors` the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lissome.core.errors import BadInput, BadModel, closest
from lissome.core.model import Model
from lissome.nn.load import TOKENIZER_FILES, as_model, save_model
from lissome.nn.models.assembly import assemble, made_of_parts
from lissome.nn.models.config import read_config
from lissome.nn.models.hugging_face import from_transformers
from lissome.nn.models.presets import PRESETS
from lissome.nn.models.swap import Swapped, swap

Change = tuple[str, Any, str | None]
"""Role, part and, for a head, its name."""


def build_to(out: Path, config: str, tokenizer: Path | None = None) -> Model:
    """Write a model to `out`: from a YAML or JSON file or the name of a preset with fresh weights, or a transformers model (folder, id, GGUF) taken over.

    tokenizer: a folder with the tokenizer that goes with it. Raises BadInput, BadConfig or BadModel.
    """
    _check_empty(out)
    path = Path(config).expanduser()
    if config in PRESETS and not path.exists():
        model = as_model(assemble(PRESETS[config]()), config)
    elif path.suffix in (".yaml", ".yml", ".json"):
        model = as_model(assemble(read_config(path)), config)
    elif path.exists() or "/" in config:
        model = from_transformers(config)
    else:
        raise BadInput(f'there is no preset "{config}".{closest(config, list(PRESETS))}', expected=f"{', '.join(PRESETS)}, a YAML or JSON file, or a model")
    if tokenizer is not None:
        if not any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
            raise BadInput("there is no tokenizer here", where=str(tokenizer), expected=f"one of {', '.join(TOKENIZER_FILES)}")
        model = dataclasses.replace(model, directory=tokenizer)
    _check_tokenizer(model)
    save_model(model, out)
    return model


def swap_to(out: Path, ref: str, changes: Sequence[Change], layers: Sequence[int] | None = None) -> tuple[Model, tuple[str, ...], tuple[str, ...]]:
    """Write the model `ref` with parts swapped to `out`; returns it, its parameters that are new, and the weights that were left behind.

    layers: the blocks that changes to blocks are for. Raises BadInput without a change, and what `swap` raises.
    """
    if not changes:
        raise BadInput("there is nothing to swap", do="name a part, such as --attention or --head")
    _check_empty(out)
    model = from_transformers(ref)
    module = made_of_parts(model.module, "swap")
    before = set(module.state_dict())
    new: set[str] = set()
    left: set[str] = set()
    for role, part, name in changes:
        found: Swapped = swap(module, role, part, name=name, layers=layers if role in ("attention", "ffn", "norm") else None)
        module, new, left = found.model, new | set(found.new), left | set(found.left)
    after = dict(module.named_parameters())
    swapped = dataclasses.replace(as_model(module, ref), directory=model.directory)
    save_model(swapped, out)
    return swapped, tuple(name for name in after if name in new), tuple(sorted(left & before))


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput("there is something here already", where=str(out), do="name a new folder, or empty this one")


def _check_tokenizer(model: Model) -> None:
    """Raise where the tokenizer has tokens that the model does not know."""
    path = model.directory / "tokenizer.json" if model.directory else None
    embedding = made_of_parts(model.module, "build").config.embedding
    if path is None or not path.is_file() or embedding.kind != "tokens":
        return
    from tokenizers import Tokenizer

    size, known = Tokenizer.from_file(str(path)).get_vocab_size(), embedding.options["vocabulary"] + embedding.options["added"]
    if size > known:
        raise BadModel(f"the tokenizer has {size:,} tokens, the model {known:,}", where=str(path), do=f"set the embedding's vocabulary to at least {size}")
