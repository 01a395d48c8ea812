"""A decoder on disk in the kernel's own layout: `decoder.json`, `decoder.safetensors` and the tokenizer. Loading maps the file and copies nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lissome.core.cache import disk_errors
from lissome.core.config import Config
from lissome.core.errors import BadInput, BadModel
from lissome.kernels.decoder.arrays import Array
from lissome.kernels.decoder.native import Layer, Weights
from lissome.kernels.decoder.packed import Packed
from lissome.nn.decoder.check import check_sizes, check_weights
from lissome.nn.decoder.ffn_record import FfnRecord, read_ffn, record_of, tensors_of
from lissome.nn.mapped import Mapped, Tensors, unreadable, write_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DESCRIPTION, TENSORS, TOKENIZER = "decoder.json", "decoder.safetensors", "tokenizer.json"
FORMAT = 1
LAYOUT = 2
"""How the tensors lie in a file that is written: part of the keys of what caches keep. Files of the same format that lie otherwise are read all the same."""
ATTENTION = ("q", "k", "v", "o")


class Matrix(Config):
    """Shape and codes of one matrix. inputs: bits that what it multiplies may be rounded to, None where that was not measured."""

    rows: int
    columns: int
    bits: int
    group: int
    layout: Literal["tiles", "neurons"] = "tiles"
    inputs: Literal[8, 16, 32] | None = None


class About(Config):
    """How a model wants to be used. end_tokens: after which nothing follows; begin_token: what every text begins with, None without."""

    chat_template: str | None = None
    end_tokens: tuple[int, ...] = ()
    begin_token: int | None = None


class Description(Config):
    """What `decoder.json` says. tied: the head is the embedding; matrices: by name; ffn: of each layer its feed-forward part, or none: gated with silu."""

    format: int
    layers: int
    heads: int
    kv_heads: int
    dim: int
    epsilon: float
    scale: float
    tied: bool
    matrices: Mapping[str, Matrix]
    ffn: tuple[FfnRecord, ...] = ()
    about: About = About()


def save_decoder(weights: Weights, folder: Path, tokenizer: Tokenizer, about: About) -> None:
    """Write a decoder, its tokenizer and how it wants to be used into `folder`, tensor by tensor."""
    packed = {"embedding": weights.embedding} | ({} if weights.head is weights.embedding else {"head": weights.head})
    tensors = {"norm": weights.norm, "cosine": weights.cosine, "sine": weights.sine}
    for at, layer in enumerate(weights.layers):
        packed |= {f"layers.{at}.{name}": one for name, one in layer.matrices.items()}
        tensors |= {f"layers.{at}.{name}": getattr(layer, name) for name in ("attention_norm", "ffn_norm")} | tensors_of(layer.ffn, f"layers.{at}.")
    told = ("rows", "columns", "bits", "group", "layout", "inputs")
    matrices = {name: Matrix(**{field: getattr(one, field) for field in told}) for name, one in packed.items()}
    plain = {name: getattr(weights, name) for name in ("heads", "kv_heads", "dim", "epsilon", "scale")}
    ffn = tuple(record_of(layer.ffn) for layer in weights.layers)
    ffn = () if set(ffn) <= {FfnRecord()} else ffn
    description = Description(format=FORMAT, layers=len(weights.layers), tied="head" not in packed, matrices=matrices, ffn=ffn, about=about, **plain)
    with disk_errors("the decoder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / TENSORS).open("wb") as file:
            order = sorted(packed, key=lambda name: (packed[name].layout != "tiles", name))  # those in tiles are whole cache lines: the next is aligned too
            write_header(file, {name: packed[name].data.size for name in order}, {name: tensor.shape for name, tensor in sorted(tensors.items())})
            for name in order:
                file.write(packed[name].data.data)
            for _, tensor in sorted(tensors.items()):
                file.write(np.ascontiguousarray(tensor, "<f4").data)
        (folder / DESCRIPTION).write_text(description.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def load_decoder(folder: Path) -> tuple[Weights, Description]:
    """The decoder in `folder`. Raises BadModel where it is not whole."""
    return map_decoder(folder)[:2]


def map_decoder(folder: Path) -> tuple[Weights, Description, Mapped]:
    """The decoder in `folder`, its matrices as views of the mapped file. Raises BadModel where it is not whole, or its parts do not fit one another."""
    try:
        told = Description.model_validate(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")))
    except OSError as error:
        raise unreadable(folder / DESCRIPTION, error) from error
    except (ValueError, RecursionError) as error:
        raise BadModel(f"the decoder cannot be read: {str(error).splitlines()[0]}", where=str(folder), expected=f"{DESCRIPTION} and {TENSORS}") from error
    if told.format != FORMAT:
        raise BadModel(f"it is of format {told.format}", where=str(folder / DESCRIPTION), expected=f"format {FORMAT}", do="make it anew")
    check_sizes(told.layers, told.heads, told.kv_heads, told.dim, 1, str(folder / DESCRIPTION))
    file = Tensors(folder / TENSORS)

    def packed(name: str) -> Packed:
        if name not in told.matrices:
            raise BadModel(f'it does not say what "{name}" is', where=str(folder / DESCRIPTION))
        try:
            return Packed(file.array(name), **told.matrices[name].model_dump())
        except BadModel:
            raise
        except BadInput as error:
            raise BadModel(f'"{name}": {error.what}', where=str(folder), expected=error.expected, do="make it anew") from error

    def layer(at: int) -> Layer:
        try:
            ffn = read_ffn(told.ffn[at] if told.ffn else FfnRecord(), lambda name: _floats(file, f"layers.{at}.{name}"))
            norm, ffn_norm = (_floats(file, f"layers.{at}.{name}") for name in ("attention_norm", "ffn_norm"))
            return Layer(norm, ffn_norm, {name: packed(f"layers.{at}.{name}") for name in (*ATTENTION, *ffn.names())}, ffn)
        except BadModel:
            raise
        except BadInput as error:
            raise BadModel(f"layer {at}: {error.what}", where=str(folder), expected=error.expected, do="make it anew") from error

    if told.ffn and len(told.ffn) != told.layers:
        raise BadModel(f"it names {len(told.ffn)} feed-forward parts for {told.layers} layers", where=str(folder / DESCRIPTION))
    layers = [layer(at) for at in range(told.layers)]
    embedding = packed("embedding")
    head = embedding if told.tied else packed("head")
    norm, cosine, sine = (_floats(file, name) for name in ("norm", "cosine", "sine"))
    try:
        weights = Weights(layers, embedding, head, norm, cosine, sine, told.heads, told.kv_heads, told.dim, told.epsilon, told.scale)
    except BadInput as error:
        raise BadModel(error.what, where=str(folder), expected=error.expected, do="make it anew") from error
    check_weights(weights, str(folder))
    return weights, told, file.mapped


def _floats(file: Tensors, name: str) -> Array:
    values = file.array(name)
    if file.stored[name].kind != "F32":
        raise BadModel(f'the tensor "{name}" is of {file.stored[name].kind}', where=str(file.path), expected="F32", do="make it anew")
    return values


def is_decoder(folder: Path) -> bool:
    """Whether `folder` holds a decoder."""
    return (folder / DESCRIPTION).is_file()


def weights_bytes(weights: Weights) -> int:
    """Bytes of all matrices, each counted once."""
    every = [one for layer in weights.layers for one in layer.matrices.values()]
    return sum({id(one): one.data.nbytes for one in (*every, weights.embedding, weights.head)}.values())
