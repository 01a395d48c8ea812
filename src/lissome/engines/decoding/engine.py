"""A decoder that is ready to run: weights, tokenizer, and room for some sequences. `Engine.step` is all that a server needs of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lissome.core.cache import check_out
from lissome.core.errors import BadInput, BadModel
from lissome.kernels.decoder.native import Decoder, Pool, Weights
from lissome.kernels.decoder.packed import Packed
from lissome.kernels.decoder.reference import Reference
from lissome.kernels.library import library
from lissome.nn.decoder.folder import DESCRIPTION, TOKENIZER, About, is_decoder, load_decoder, save_decoder
from lissome.nn.decoder.gguf import Gguf, read_gguf
from lissome.nn.decoder.tokenizer import tokenizer_of
from lissome.nn.decoder.weights import from_gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROOM = 4096
"""Tokens that a sequence has room for unless another number is asked for: keys and values of a whole context would take more memory than most need."""
ENDS = ("<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<|end|>")
"""Tokens that end a turn in common chat templates; what the file names itself counts too."""


@dataclass(frozen=True)
class Batch:
    """Rows of a step. tokens, slots, positions: [rows], a token each, the sequence it is of and its place there; rows of a sequence are neighbours, in
    rising order. wanted: the rows whose logits are asked for."""

    tokens: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor
    wanted: torch.Tensor


class Engine:
    """A decoder with room for `slots` sequences of up to `capacity` tokens."""

    def __init__(
        self, weights: Weights, tokenizer: Tokenizer, about: About = About(), *, slots: int = 1, capacity: int | None = None, threads: int | None = None
    ) -> None:
        if tokenizer.get_vocab_size() > weights.embedding.rows:
            raise BadModel(
                f"the tokenizer has {tokenizer.get_vocab_size():,} tokens and the model {weights.embedding.rows:,}",
                do="give the tokenizer that the model was trained with",
            )
        self.weights, self.tokenizer, self.about = weights, tokenizer, about
        self.slots = slots
        self.capacity = capacity or min(ROOM, weights.cosine.shape[0])
        self.threads = threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
        if library().handle is None:
            self._decoder: Decoder | Reference = Reference(weights, slots, self.capacity)
        else:
            self._decoder = Decoder(weights, slots, self.capacity, Pool(self.threads))

    def step(self, batch: Batch) -> torch.Tensor:
        """Logits [wanted, vocabulary] after all rows of the batch were read. Raises BadInput for places beyond the capacity."""
        if len(batch.positions) and int(batch.positions.max()) >= self.capacity:
            raise BadInput(f"place {int(batch.positions.max()):,} is beyond the {self.capacity:,} tokens that there is room for", do="give a shorter text")
        return self._decoder.step(batch.tokens, batch.slots, batch.positions, batch.wanted)

    def read(self, tokens: list[int], slot: int = 0, start: int = 0) -> torch.Tensor:
        """Logits [vocabulary] after `tokens`, the first of which stands at `start` of a slot."""
        if not tokens:
            raise BadInput("there is nothing to go on from: 0 tokens", expected="a prompt of at least one token")
        rows = len(tokens)
        given = Batch(torch.tensor(tokens), torch.full((rows,), slot), torch.arange(start, start + rows), torch.tensor([rows - 1]))
        return self.step(given)[0]

    def part(self, first: int, last: int, head: Packed | None = None) -> Decoder | Reference:
        """Layers [first, last) alone, over the same weights, keys and values; head: one of its own. Raises BadInput for layers that do not exist."""
        layers = len(self.weights.layers)
        if not 0 <= first < last <= layers:
            raise BadInput(f"there are no layers {first} to {last}: the model has {layers}", expected=f"0 <= first < last <= {layers}")
        return self._decoder.part(first, last, head)

    def ends(self) -> set[int]:
        """Tokens after which nothing follows."""
        return set(self.about.end_tokens) | {token for text in ENDS if (token := self.tokenizer.token_to_id(text)) is not None}


def open_engine(ref: str | Path, *, slots: int = 1, capacity: int | None = None, threads: int | None = None) -> Engine:
    """The engine for a GGUF file or a decoder's folder. Raises BadModel for anything else."""
    from tokenizers import Tokenizer

    path = Path(ref).expanduser()
    if path.is_dir() and is_decoder(path):
        weights, description = load_decoder(path)
        return Engine(weights, Tokenizer.from_file(str(path / TOKENIZER)), description.about, slots=slots, capacity=capacity, threads=threads)
    if path.is_file():
        file = read_gguf(path)
        return Engine(from_gguf(file), tokenizer_of(file), about_of(file), slots=slots, capacity=capacity, threads=threads)
    raise BadModel(f'no decoder at "{ref}"', expected="a GGUF file, or a folder that `lissome pack` wrote")


def about_of(file: Gguf) -> About:
    """What a GGUF file says of how it is to be used."""
    metadata = file.metadata
    ends = tuple(one for key in ("eos_token_id", "eot_token_id") if isinstance(one := metadata.get(f"tokenizer.ggml.{key}"), int))
    begin = metadata.get("tokenizer.ggml.bos_token_id") if metadata.get("tokenizer.ggml.add_bos_token") else None
    return About(chat_template=metadata.get("tokenizer.chat_template"), end_tokens=ends, begin_token=begin)


def pack_gguf(path: Path, out: Path) -> None:
    """Write the decoder in a GGUF file into a folder that loads without being packed again."""
    check_out(out, DESCRIPTION)
    file = read_gguf(path)
    save_decoder(from_gguf(file), out, tokenizer_of(file), about_of(file))
