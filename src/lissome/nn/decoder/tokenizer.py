"""The tokenizer of a model, as the `tokenizers` library has it: from its own file, or from inside a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.core.errors import BadModel
from lissome.nn.decoder.gguf import Gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTROL, USER, UNUSED = 3, 4, 5
"""Kinds of tokens that text cannot spell: markers of the model, words that the model's maker added, and rows of the embedding that stand for nothing."""
SPLITS = {"smollm": "digits", "gpt-2": "plain", "default": "plain"}
"""tokenizer.ggml.pre -> how text is cut before byte-pair encoding."""


def read_tokenizer(path: Path, do: str) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`. Raises BadModel where it is missing or broken; do: what helps then."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception, for a file that is missing too
        raise BadModel(f"its tokenizer cannot be read: {str(error).splitlines()[0]}", where=str(path), do=do) from error


def tokenizer_of(file: Gguf) -> Tokenizer:
    """Byte-level BPE from a file's metadata. Raises BadModel for another kind (named)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, split = file.metadata.get("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in SPLITS:
        raise BadModel(f'its tokenizer is "{kind}", "{split}"', where=str(file.path), expected=f'"gpt2" with {", ".join(SPLITS)}')
    tokens, merges = _texts(file, "tokenizer.ggml.tokens"), _texts(file, "tokenizer.ggml.merges")
    kinds: list[Any] = file.metadata.get("tokenizer.ggml.token_type") or []
    used = len(tokens)
    while kinds[used - 1 : used] == [UNUSED]:
        used -= 1
    tokens = tokens[:used]
    parted = [merge.partition(" ") for merge in merges]
    if not all(first and last for first, _, last in parted):
        raise BadModel("a merge of its tokenizer is no pair of pieces", where=str(file.path))
    pairs = [(first, last) for first, _, last in parted]
    try:
        made = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, pairs))
    except Exception as error:  # the library raises plain Exception for a merge whose pieces are no tokens
        raise BadModel(f"its tokenizer cannot be made: {error}", where=str(file.path)) from error
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_]) if SPLITS[split] == "digits" else bytes_
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, one in zip(tokens, kinds, strict=False) if one == CONTROL])
    made.add_tokens([AddedToken(token, normalized=False) for token, one in zip(tokens, kinds, strict=False) if one == USER])
    return made


def _texts(file: Gguf, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadModel(f'its metadata has no list of texts under "{key}"', where=str(file.path), expected="a model with its tokenizer inside")
    return value
