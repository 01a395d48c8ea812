"""Float weights of a Llama-shaped decoder, read one by one: a Hugging Face folder or a GGUF file, so that no whole model need be in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lissome.core.errors import BadModel
from lissome.kernels.decoder.arrays import Array
from lissome.kernels.decoder.packed import Codes
from lissome.nn.decoder.folder import TOKENIZER, About
from lissome.nn.decoder.gguf import Gguf, read_gguf
from lissome.nn.decoder.tokenizer import read_tokenizer, tokenizer_of
from lissome.nn.decoder.weights import GGUF_NAMES, LLAMA_NAMES, gguf_plan, halves_first
from lissome.nn.mapped import tensors_in

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WHOLE = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
GGUF_WHOLE = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}
GGUF_NORMS = {"attention_norm": "attn_norm", "ffn_norm": "ffn_norm"}


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. positions: the longest context; base: of the rotations; tied: the head is the embedding."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    dim: int
    ffn: int
    vocabulary: int
    positions: int
    epsilon: float
    base: float
    tied: bool


@dataclass(frozen=True)
class Checkpoint:
    """A decoder whose tensors are read when they are asked for.

    read: "embedding", "head", "norm", "layers.3.q" (and so on, by the names in MATRICES), "layers.3.attention_norm", "layers.3.ffn_norm" -> float32, or codes
    where a GGUF file holds codes. Rows of queries and keys come as Hugging Face has them. Raises BadModel where there is none, or it is not finite.
    """

    shape: Shape
    read: Callable[[str], Array | Codes]
    tokenizer: Tokenizer
    about: About
    where: str

    def floats(self, name: str) -> Array:
        """A tensor that must be floats. Raises BadModel where it is in codes."""
        found = self.read(name)
        if isinstance(found, Codes):
            raise BadModel(
                f'"{name}" is in codes of {found.bits} bits already; rounding it again would lose more.',
                where=self.where,
                expected="a model in float32, bfloat16 or float16",
                do="pack it without --method, which keeps the codes exactly as they are",
            )
        return found


def open_checkpoint(path: Path) -> Checkpoint:
    """The decoder in a Hugging Face folder or a GGUF file. Raises BadModel for anything else, and for shapes that are not Llama's."""
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_gguf(path)
    raise BadModel(f'no decoder at "{path}"', expected="a Hugging Face folder of a Llama-shaped model, or a GGUF file")


def _from_folder(folder: Path) -> Checkpoint:
    config = read_json(folder / "config.json")
    if config is None:
        raise BadModel("it has no config.json", where=str(folder), expected="a Hugging Face folder of a Llama-shaped model")
    shape = shape_of(config, str(folder))
    files = tensors_in(folder)

    def read(name: str) -> Array | Codes:
        inner = name.split(".")
        if inner[0] == "layers":
            part = LLAMA_NAMES.get(inner[2]) or NORMS[inner[2]]
            stored = f"model.layers.{inner[1]}.{part}.weight"
        else:
            stored = f"{WHOLE[name]}.weight"
        if stored not in files:
            raise BadModel(f'there is no tensor "{stored}"', where=str(folder), expected="all weights of the model that config.json describes")
        return _finite(files[stored].floats(stored), stored, str(folder))

    return Checkpoint(shape, read, *spoken(folder, config), str(folder))


def spoken(folder: Path, config: Mapping[str, Any]) -> tuple[Tokenizer, About]:
    """The tokenizer beside a model, and how the model is to be used. config: of its config.json. Raises BadModel where there is no fast tokenizer."""
    if not (folder / TOKENIZER).is_file():
        raise BadModel(f"it has no {TOKENIZER}", where=str(folder), do="save the model's fast tokenizer beside it")
    tokenizer = read_tokenizer(folder / TOKENIZER, "save the model's fast tokenizer again")
    return tokenizer, _about(folder, config)


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """Sizes from a config.json. Raises BadModel for another architecture, biases, scaled positions, and for numbers that are missing."""
    if config.get("model_type") != "llama" or config.get("hidden_act") != "silu" or config.get("attention_bias") or config.get("mlp_bias"):
        raise BadModel(
            f"a {config.get('model_type')} with {config.get('hidden_act')} is not offered",
            where=where,
            expected="a Llama-shaped model with silu and no biases",
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise BadModel(f'positions scaled as "{kind}" are not offered', where=where, expected="plain rotations (rope_type default)")

    def number(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or value < 1:
            raise BadModel(f'config.json has {value} for "{key}"', where=where, expected="a whole number above 0")
        return value

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    return Shape(
        layers=number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        dim=number("head_dim", hidden // heads),
        ffn=number("intermediate_size"),
        vocabulary=number("vocab_size"),
        positions=number("max_position_embeddings"),
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        base=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _from_gguf(path: Path) -> Checkpoint:
    file = read_gguf(path)
    shape = gguf_shape(file)
    unturned = {"q": shape.heads, "k": shape.kv_heads}

    def read(name: str) -> Array | Codes:
        inner = name.split(".")
        if inner[0] != "layers":
            return _finite(file.tensor(f"{GGUF_WHOLE[name]}.weight"), name, str(path))
        part = GGUF_NAMES.get(inner[2]) or GGUF_NORMS[inner[2]]
        found = file.tensor(f"blk.{inner[1]}.{part}.weight")
        return _finite(halves_first(found, unturned[inner[2]]) if inner[2] in unturned else found, name, str(path))

    return Checkpoint(shape, read, tokenizer_of(file), gguf_about(file), str(path))


def gguf_shape(file: Gguf) -> Shape:
    """Sizes of the decoder in a GGUF file. Raises BadModel as `gguf_plan` does."""
    plan = gguf_plan(file)
    rows = {name: file.entries[f"{name}.weight"].shape[0] for name in ("token_embd", "blk.0.ffn_gate")}
    return Shape(
        layers=plan.layers,
        hidden=plan.hidden,
        heads=plan.heads,
        kv_heads=plan.kv_heads,
        dim=plan.dim,
        ffn=rows["blk.0.ffn_gate"],
        vocabulary=rows["token_embd"],
        positions=plan.positions,
        epsilon=plan.epsilon,
        base=plan.base,
        tied="output.weight" not in file.entries,
    )


def gguf_about(file: Gguf) -> About:
    """What a GGUF file says of how it is to be used."""
    metadata = file.metadata
    ends = tuple(one for key in ("eos_token_id", "eot_token_id") if isinstance(one := metadata.get(f"tokenizer.ggml.{key}"), int))
    begin = metadata.get("tokenizer.ggml.bos_token_id") if metadata.get("tokenizer.ggml.add_bos_token") else None
    template = metadata.get("tokenizer.chat_template")
    return About(
        chat_template=template if isinstance(template, str) else None, end_tokens=ends, begin_token=begin if isinstance(begin, int) and begin >= 0 else None
    )


def _about(folder: Path, config: Mapping[str, Any]) -> About:
    """What a Hugging Face folder says of how the model is to be used."""
    told = read_json(folder / "tokenizer_config.json") or {}
    generation = read_json(folder / "generation_config.json") or {}
    ends = [one for where in (generation, config) for one in _numbers(where.get("eos_token_id"))]
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else told.get("chat_template")
    begin = config.get("bos_token_id") if told.get("add_bos_token") else None
    return About(chat_template=template if isinstance(template, str) else None, end_tokens=tuple(dict.fromkeys(ends)), begin_token=begin)


def _numbers(value: Any) -> list[int]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]


def read_json(path: Path) -> dict[str, Any] | None:
    """A file of keys and values; None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadModel(f"it cannot be read: {error}", where=str(path), expected="JSON") from error
    if not isinstance(found, dict):
        raise BadModel("it holds no keys and values", where=str(path), expected="JSON")
    return found


def _finite(tensor: Array | Codes, name: str, where: str) -> Array | Codes:
    every = (tensor.scale, tensor.offset) if isinstance(tensor, Codes) else (tensor,)
    if not all(np.isfinite(one).all() for one in every):
        raise BadModel(f'"{name}" holds NaN or infinity', where=where, do="fetch the model again")
    return tensor
