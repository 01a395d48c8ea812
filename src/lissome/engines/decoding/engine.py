"""A decoder that is ready to run: weights, tokenizer, and room for some sequences. `Engine.step` is all that a server needs of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lissome.core.cache import Cache, check_out, file_sha256
from lissome.core.errors import BadInput, BadModel
from lissome.engines.decoding.streaming import Streamed
from lissome.kernels.decoder.arrays import Array, hold
from lissome.kernels.decoder.native import INPUTS, Decoder, Inputs, Pool, Weights, check_inputs
from lissome.kernels.decoder.packed import Packed
from lissome.kernels.library import library
from lissome.machine.budget import measured_budget, parse_bytes
from lissome.nn.decoder.check import check_weights
from lissome.nn.decoder.checkpoint import gguf_about
from lissome.nn.decoder.folder import DESCRIPTION, LAYOUT, TOKENIZER, About, is_decoder, map_decoder
from lissome.nn.decoder.gguf import read_gguf
from lissome.nn.decoder.pack_file import pack_file
from lissome.nn.decoder.tokenizer import read_tokenizer, tokenizer_of
from lissome.nn.decoder.weights import from_gguf
from lissome.nn.mapped import Mapped

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from lissome.kernels.decoder.reference import Reference

ROOM = 4096
"""Tokens that a sequence has room for unless another number is asked for: keys and values of a whole context would take more memory than most need."""
PADDING = 1024
"""Rows of the vocabulary beyond the tokenizer's tokens that pass for padding, or a tenth of all: makers round the vocabulary up."""
THREADS_A_CORE = 8
"""More than so many threads for each core are refused."""
ENDS = ("<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<|end|>")
"""Tokens that end a turn in common chat templates; what the file names itself counts too."""


@dataclass(frozen=True)
class Batch:
    """Rows of a step. tokens, slots, positions: [rows], a token each, the sequence it is of and its place there; rows of a sequence are neighbours, in
    rising order. wanted: the rows whose logits are asked for."""

    tokens: Array
    slots: Array
    positions: Array
    wanted: Array

    def __post_init__(self) -> None:
        hold(self, "tokens", "slots", "positions", "wanted")


class Engine:
    """A decoder with room for `slots` sequences of up to `capacity` tokens.

    inputs: see `Decoder`: 8 bits are faster than 16 and less accurate; mixed takes 8 where they cost little. within: the file that the weights are views of,
    and what memory may be used.
    """

    def __init__(
        self,
        weights: Weights,
        tokenizer: Tokenizer,
        about: About = About(),
        *,
        slots: int = 1,
        capacity: int | None = None,
        threads: int | None = None,
        inputs: Inputs = INPUTS,
        within: tuple[Mapped, int] | None = None,
    ) -> None:
        words, rows = tokenizer.get_vocab_size(), weights.embedding.rows
        if not words <= rows <= words + max(PADDING, rows // 10):
            raise BadModel(
                f"the tokenizer has {words:,} tokens and the model {rows:,}",
                do="give the tokenizer that the model was trained with",
            )
        if about.begin_token is not None and about.begin_token >= rows:
            raise BadModel(f"texts begin with token {about.begin_token:,}, and the model has {rows:,}", do="fetch the model again")
        self.weights, self.tokenizer, self.about = weights, tokenizer, about
        self.slots = slots
        check_weights(weights, "the decoder")
        check_inputs(inputs)
        if capacity and capacity > weights.cosine.shape[0]:
            raise BadInput(f"room for {capacity} tokens, but positions for {weights.cosine.shape[0]}", do="ask for less")
        self.capacity = capacity or min(ROOM, weights.cosine.shape[0])
        cores = len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
        self.threads = threads or cores
        if not 1 <= self.threads <= THREADS_A_CORE * cores:
            raise BadInput(f"{self.threads:,} threads on {cores} cores only wait for one another", expected=f"1 to {THREADS_A_CORE * cores}")
        self._decoder: Decoder | Reference | Streamed
        if within:
            library().loaded()  # the plain twin widens whole matrices: it has no use for a budget
            self._decoder = Streamed(weights, within[0], slots, capacity, self.threads, measured_budget(within[1]), inputs)
            self.capacity = self._decoder.plan.capacity
        elif library().handle is None:
            from lissome.kernels.decoder.reference import Reference  # torch: loaded where it computes, and nowhere else

            self._decoder = Reference(weights, slots, self.capacity)
        else:
            self._decoder = Decoder(weights, slots, self.capacity, Pool(self.threads), inputs=inputs)

    def step(self, batch: Batch) -> Array:
        """Logits [wanted, vocabulary], float32, after all rows of the batch were read. Raises BadInput for places beyond the capacity."""
        if len(batch.positions) and int(batch.positions.max()) >= self.capacity:
            raise BadInput(f"place {int(batch.positions.max()):,} is beyond the {self.capacity:,} tokens that there is room for", do="give a shorter text")
        return self._decoder.step(batch.tokens, batch.slots, batch.positions, batch.wanted)

    def read(self, tokens: list[int], slot: int = 0, start: int = 0) -> Array:
        """Logits [vocabulary] after `tokens`, the first of which stands at `start` of a slot."""
        if not tokens:
            raise BadInput("there is nothing to go on from: 0 tokens", expected="a prompt of at least one token")
        rows = len(tokens)
        given = Batch(np.array(tokens), np.full(rows, slot), np.arange(start, start + rows), np.array([rows - 1]))
        last: Array = self.step(given)[0]
        return last

    def part(self, first: int, last: int, head: Packed | None = None) -> Decoder | Reference:
        """Layers [first, last) alone, over the same weights, keys and values, their inputs never rounded; head: one of its own. Raises BadInput for layers
        that do not exist."""
        layers = len(self.weights.layers)
        if not 0 <= first < last <= layers:
            raise BadInput(f"there are no layers {first} to {last}: the model has {layers}", expected=f"0 <= first < last <= {layers}")
        if isinstance(self._decoder, Streamed):
            raise BadInput("layers alone cannot be had within a memory budget", do="leave out --memory-budget, or --draft-layers")
        return self._decoder.part(first, last, head, exact=True)

    @property
    def streamed(self) -> Streamed | None:
        """How a memory budget is kept; None where there is none."""
        return self._decoder if isinstance(self._decoder, Streamed) else None

    def ends(self) -> set[int]:
        """Tokens after which nothing follows."""
        return set(self.about.end_tokens) | {token for text in ENDS if (token := self.tokenizer.token_to_id(text)) is not None}


def open_engine(
    ref: str | Path,
    *,
    slots: int = 1,
    capacity: int | None = None,
    threads: int | None = None,
    inputs: Inputs = INPUTS,
    budget: int | str | None = None,
) -> Engine:
    """The engine for a GGUF file or a decoder's folder.

    inputs: as for Engine. budget: bytes that this process may take at its peak, or "300MB"; a GGUF file is then packed first, once, into the cache.
    Raises BadModel for anything else, and BadInput for a budget that is too small, with what is needed.
    """
    sizes: dict[str, Any] = {"slots": slots, "capacity": capacity, "threads": threads, "inputs": inputs}
    path = Path(ref).expanduser()
    size = parse_bytes(budget) if isinstance(budget, str) else budget
    if size is not None and path.is_file():
        path = packed(path)
    if path.is_dir() and is_decoder(path):
        weights, description, mapped = map_decoder(path)
        within = None if size is None else (mapped, size)
        return Engine(weights, read_tokenizer(path / TOKENIZER, "pack the model again"), description.about, **sizes, within=within)
    if path.is_file():
        file = read_gguf(path)
        return Engine(from_gguf(file, capacity or ROOM), tokenizer_of(file), gguf_about(file), **sizes)
    way = f"lissome pack {ref} --out NEW_FOLDER" if path.is_dir() else None
    raise BadModel(f'no decoder at "{ref}"', expected="a GGUF file, or a folder that `lissome pack` wrote", do=way)


def packed(path: Path) -> Path:
    """The folder of a GGUF file, packed the first time and found by the file's sha256 afterwards."""
    read_gguf(path)  # what is none is said before anything else
    return Cache().folder("decoder", f"{file_sha256(path)[:16]}-{LAYOUT}", lambda out: pack_gguf(path, out))


def pack_gguf(path: Path, out: Path) -> None:
    """Write the decoder in a GGUF file into a folder that loads without being packed again."""
    check_out(out, DESCRIPTION)
    file = read_gguf(path)
    pack_file(file, out, tokenizer_of(file), gguf_about(file))
