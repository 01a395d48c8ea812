"""Tokenizers trained here: byte-level BPE (Sennrich et al. 2016; over bytes, Radford et al. 2019), which writes every text and gives it back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lissome.core.cache import Cache, digest
from lissome.core.errors import BadConfig, BadInput

if TYPE_CHECKING:
    import tokenizers

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SPECIAL = (PAD, BEGIN, END)
BYTES = 256


def train_tokenizer(texts: Iterable[str], size: int, special: Sequence[str] = SPECIAL) -> tokenizers.Tokenizer:
    """A byte-level BPE of at most `size` tokens, learned from `texts`; the same texts give the same one.

    special: names of tokens that stand for no text; they take the ids 0, 1, 2, ... in order. The first is the padding. Texts that contain such a name come
    back without it, so choose names that no text has. Raises BadConfig for a size below 256 bytes and the special tokens, BadInput without texts.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if size < BYTES + len(special):
        raise BadConfig(f"a vocabulary of {size} is too small", expected=f"at least {BYTES + len(special)}: every byte, and {len(special)} special tokens")
    if len(set(special)) != len(special) or not all(special):
        raise BadConfig(f"the special tokens {list(special)} are not all different names")
    seen = False

    def noted() -> Iterable[str]:
        nonlocal seen
        for text in texts:
            seen = seen or bool(text)
            yield text

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(noted(), trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False))
    if not seen:
        raise BadInput("there is no text to learn a vocabulary from.", do="give the texts of the train split")
    return made


def tokenizer_for(texts: Sequence[str], size: int, special: Sequence[str] = SPECIAL, cache: Cache | None = None) -> tokenizers.Tokenizer:
    """What train_tokenizer makes of `texts`, from the cache after the first time."""
    from tokenizers import Tokenizer

    def make(into: object) -> None:
        train_tokenizer(texts, size, special).save(f"{into}/tokenizer.json")

    folder = (cache or Cache()).folder("tokenizers", digest("byte-bpe-1", texts, size, list(special)), make)
    found: tokenizers.Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return found
