"""A vocabulary of a field on top of a base vocabulary: each new token begins as the mean of the old pieces that it was made of (Hewitt 2021).

found = extend(model, tokenizer, ["tachycardia", "stenosis"])
train_only(found.model, found.new)                     # the old rows, and everything else, stay as they are
save_extended(found, Path("cardiology"), Path("base"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lissome.core.cache import disk_errors
from lissome.core.errors import BadInput, BadModel
from lissome.core.model import Model
from lissome.nn.load import TOKENIZER_FILES, as_model, save_model
from lissome.nn.models.assembly import ModularModel, assemble, made_of_parts
from lissome.nn.models.config import model_config
from lissome.nn.models.embeddings import Tokens
from lissome.nn.models.heads import LanguageHead

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Extended:
    """A model and a tokenizer that know more tokens. new: names of the parameters that are the new rows. pieces: new token -> the ids of its old pieces."""

    model: ModularModel
    tokenizer: Tokenizer
    new: tuple[str, ...]
    pieces: dict[str, tuple[int, ...]]


def extend(model: nn.Module | Model, tokenizer: Tokenizer, tokens: Sequence[str]) -> Extended:
    """A copy of the model, and of its tokenizer, with `tokens` added; until it learns, it answers about old tokens as before.

    The new rows, of the embedding and of language heads, are parameters of their own, so that the old ones can be frozen, weight decay included. Rows that
    no token of the tokenizer has are dropped. A token of letters and digits is found as a whole word only, others (" stenosis", with its space) anywhere.
    Raises BadInput for tokens that are empty, twice there or known already, BadModel for a tokenizer of another model.
    """
    from tokenizers import AddedToken, Tokenizer

    base = merged(made_of_parts(model.module if isinstance(model, Model) else model, "extend"))
    size, rows = tokenizer.get_vocab_size(), _table(base).vocabulary
    if size > rows:
        raise BadModel(f"the tokenizer has {size:,} tokens, the model {rows:,}", do="give the model's own tokenizer")
    pieces = {token: _pieces(tokenizer, token) for token in tokens}
    if not tokens or len(pieces) < len(tokens):
        raise BadInput("the new tokens are none, or one is named twice", expected="at least one, each once")
    wider = Tokenizer.from_str(tokenizer.to_str())
    wider.add_tokens([AddedToken(token, single_word=token.isalnum(), normalized=True) for token in tokens])
    if [wider.token_to_id(token) for token in tokens] != list(range(size, size + len(tokens))):
        raise BadModel("the tokenizer's ids have holes, so new tokens cannot follow the old", do="give a tokenizer whose ids are 0 to its size")
    made = _with_rows(base, size, list(pieces.values()))
    new = [name for name, _ in made.named_parameters() if ".added." in name]
    return Extended(made, wider, tuple(new), pieces)


def merged(model: nn.Module) -> ModularModel:
    """A copy whose added tokens are rows like any other; answers stay the same. What has none is copied as it is."""
    old = made_of_parts(model, "merged")
    added = _table(old).added
    state = dict(old.state_dict())
    if added is not None:
        for name in [name for name in state if ".added." in name]:
            place = name.replace(".added.", ".table." if name.startswith("trunk.") else ".linear.")
            state[place] = torch.cat((state[place], state.pop(name)))
    return _filled(old, state, _table(old).vocabulary + (added.num_embeddings if added is not None else 0), 0)


def save_extended(found: Extended, folder: Path, base: Path | None = None) -> Model:
    """Write the model and its tokenizer into a folder that `load_model` takes. base: the folder of the old tokenizer, whose settings are copied."""
    model = as_model(found.model, str(folder))
    save_model(model, folder)
    with disk_errors("the tokenizer", folder):
        found.tokenizer.save(str(folder / "tokenizer.json"))
        for name in set(TOKENIZER_FILES) - {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"}:
            if base and (base / name).is_file():
                (folder / name).write_bytes((base / name).read_bytes())
    return Model(model.module, model.architecture, model.ref, model.fingerprint, folder)


def _pieces(tokenizer: Tokenizer, token: str) -> tuple[int, ...]:
    """What a token was made of so far."""
    if not token.strip():
        raise BadInput(f'"{token}" is no token', expected="at least one character that is no space")
    if tokenizer.token_to_id(token) is not None:
        raise BadInput(f'"{token}" is a token already', do="leave it out")
    found = tuple(tokenizer.encode(token, add_special_tokens=False).ids)
    if not found:
        raise BadInput(f'the tokenizer makes nothing of "{token}"', do="leave it out")
    return found


def _with_rows(base: ModularModel, size: int, pieces: Sequence[Sequence[int]]) -> ModularModel:
    """The model with a base vocabulary of `size`, and one added token for each of `pieces`."""
    state = dict(base.state_dict())
    for table in [name for name in state if _by_token(base, name)]:
        owner, _, kind = table.rpartition(".")
        whole = state[table]
        state[f"{owner.rpartition('.')[0]}.added.{kind}"] = torch.stack([whole[list(ids)].mean(0) for ids in pieces])
        state[table] = whole[:size]
    return _filled(base, state, size, len(pieces))


def _by_token(model: ModularModel, name: str) -> bool:
    """Whether a weight has a row for each token."""
    if name == "trunk.embedding.table.weight":
        return True
    head, _, kind = name.removeprefix("heads.").partition(".linear.")
    return name.startswith("heads.") and bool(kind) and isinstance(model.heads[head], LanguageHead)


def _filled(old: ModularModel, state: dict[str, torch.Tensor], vocabulary: int, added: int) -> ModularModel:
    """A model of the same config but for the vocabulary, with these weights."""
    values = old.config.model_dump(mode="json")
    values["embedding"] |= {"vocabulary": vocabulary, "added": added}
    made = assemble(model_config(values))
    first = next(old.parameters())
    made.to(device=first.device, dtype=first.dtype).load_state_dict(state)
    return made.train(old.training)


def _table(model: ModularModel) -> Tokens:
    table: Any = model.trunk.embedding
    if not isinstance(table, Tokens):
        raise BadModel("the model has no embedding of tokens", expected="an embedding of the kind tokens")
    return table
