"""A decoder on disk in the kernel's own layout: `decoder.json`, `decoder.safetensors` and the tokenizer. Loading maps the file and copies nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from lissome.core.cache import disk_errors
from lissome.core.config import Config
from lissome.core.errors import BadModel
from lissome.kernels.decoder.native import Layer, Weights
from lissome.kernels.decoder.packed import Packed
from lissome.nn.decoder.ffn_record import FfnRecord, read_ffn, record_of, tensors_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DESCRIPTION, TENSORS, TOKENIZER = "decoder.json", "decoder.safetensors", "tokenizer.json"
FORMAT = 1
ATTENTION = ("q", "k", "v", "o")


class Matrix(Config):
    """Shape and codes of one matrix."""

    rows: int
    columns: int
    bits: int
    group: int
    layout: Literal["tiles", "neurons"] = "tiles"


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
    """Write a decoder, its tokenizer and how it wants to be used into `folder`."""
    from safetensors.torch import save_file

    packed = {"embedding": weights.embedding} | ({} if weights.head is weights.embedding else {"head": weights.head})
    tensors = {"norm": weights.norm, "cosine": weights.cosine, "sine": weights.sine}
    for at, layer in enumerate(weights.layers):
        packed |= {f"layers.{at}.{name}": one for name, one in layer.matrices.items()}
        tensors |= {f"layers.{at}.{name}": getattr(layer, name) for name in ("attention_norm", "ffn_norm")} | tensors_of(layer.ffn, f"layers.{at}.")
    matrices = {name: Matrix(rows=one.rows, columns=one.columns, bits=one.bits, group=one.group, layout=one.layout) for name, one in packed.items()}
    plain = {name: getattr(weights, name) for name in ("heads", "kv_heads", "dim", "epsilon", "scale")}
    ffn = tuple(record_of(layer.ffn) for layer in weights.layers)
    description = Description(format=FORMAT, layers=len(weights.layers), tied="head" not in packed, matrices=matrices, ffn=ffn, about=about, **plain)
    with disk_errors("the decoder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        data = {name: tensor.float().contiguous() for name, tensor in tensors.items()} | {name: one.data for name, one in packed.items()}
        save_file(data, folder / TENSORS)
        (folder / DESCRIPTION).write_text(description.model_dump_json(indent=1) + "\n", encoding="utf-8")
        tokenizer.save(str(folder / TOKENIZER))


def load_decoder(folder: Path) -> tuple[Weights, Description]:
    """The decoder in `folder`. Raises BadModel where it is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        description = Description.model_validate(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")))
        if description.format != FORMAT:
            raise BadModel(f"it is of format {description.format}", where=str(folder / DESCRIPTION), expected=f"format {FORMAT}", do="make it anew")
        with safe_open(folder / TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except (OSError, ValueError, SafetensorError) as error:
        raise BadModel(f"the decoder cannot be read: {str(error).splitlines()[0]}", where=str(folder), expected=f"{DESCRIPTION} and {TENSORS}") from error

    def packed(name: str) -> Packed:
        if name not in description.matrices:
            raise BadModel(f'it does not say what "{name}" is', where=str(folder / DESCRIPTION))
        return Packed(_tensor(tensors, name, folder), **description.matrices[name].model_dump())

    def layer(at: int) -> Layer:
        record = description.ffn[at] if description.ffn else FfnRecord()
        ffn = read_ffn(record, lambda name: _tensor(tensors, f"layers.{at}.{name}", folder))
        norms = (_tensor(tensors, f"layers.{at}.{name}", folder) for name in ("attention_norm", "ffn_norm"))
        return Layer(*norms, {name: packed(f"layers.{at}.{name}") for name in (*ATTENTION, *ffn.names())}, ffn)

    if description.ffn and len(description.ffn) != description.layers:
        raise BadModel(f"it names {len(description.ffn)} feed-forward parts for {description.layers} layers", where=str(folder / DESCRIPTION))
    layers = [layer(at) for at in range(description.layers)]
    embedding = packed("embedding")
    head = embedding if description.tied else packed("head")
    norm, cosine, sine = (_tensor(tensors, name, folder) for name in ("norm", "cosine", "sine"))
    told = description
    return Weights(layers, embedding, head, norm, cosine, sine, told.heads, told.kv_heads, told.dim, told.epsilon, told.scale), description


def _tensor(tensors: Mapping[str, torch.Tensor], name: str, folder: Path) -> torch.Tensor:
    if name not in tensors:
        raise BadModel(f'there is no tensor "{name}"', where=str(folder / TENSORS), do="make it anew")
    return tensors[name]


def is_decoder(folder: Path) -> bool:
    """Whether `folder` holds a decoder."""
    return (folder / DESCRIPTION).is_file()


def weights_bytes(weights: Weights) -> int:
    """Bytes of all matrices, each counted once."""
    every = [one for layer in weights.layers for one in layer.matrices.values()]
    return sum({id(one): one.data.numel() for one in (*every, weights.embedding, weights.head)}.values())
