"""Weights of a decoder in few bits, block by block: one block's floats are in memory at a time, and what is calibrated runs through the blocks once.

A block has four stages of matrices that share their inputs: q, k and v; o; gate and up; down. Each stage is rounded on the inputs that it has after everything
before it was rounded (GPTQ's "true sequential" order), so that later stages make up for earlier ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

from lissome.compress.quantize.config import BY_INPUTS, Rounding
from lissome.compress.quantize.feedback import DAMP, Inputs, channel_scales, round_by_inputs
from lissome.compress.quantize.grids import Rule, Search, decoder_rule, find_grid
from lissome.core.config import Config
from lissome.core.errors import BadInput, BadModel
from lissome.core.progress import Progress, Silent
from lissome.kernels.decoder.arrays import Array
from lissome.kernels.decoder.native import Layer, Weights
from lissome.kernels.decoder.packed import Codes, Packed, pack
from lissome.nn.decoder.checkpoint import Checkpoint, Shape
from lissome.nn.decoder.modules import TABLES
from lissome.nn.decoder.weights import rotations

STAGES = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
ROWS_TOGETHER = 8192
"""Rows of the embedding that are rounded at once."""


class RoundConfig(Config):
    """How a decoder's matrices become codes of 4 bits.

    method: "rtn" takes each group's extremes, "absolute" and "mse" search the grid with the least error of the weights, "awq" scales channels by their
    inputs first and searches with errors weighted by them, "gptq" feeds errors back, "awq+gptq" does both. The last three need calibration text.
    group: columns that share a scale; symmetric: no offset. embedding: bits of the embedding, and of a head of its own; 32 leaves it in float.
    tokens, length: how much text is calibrated on, and in windows of how many tokens. damp: GPTQ's, a share of the mean of H's diagonal.
    """

    method: Rounding = "mse"
    group: Literal[32, 64, 128] = 32
    symmetric: bool = False
    embedding: Literal[4, 8, 32] = 8
    tokens: int = Field(default=8192, ge=1)
    length: int = Field(default=512, ge=2)
    damp: float = Field(default=DAMP, gt=0)

    @property
    def by_inputs(self) -> bool:
        """Whether calibration text is needed."""
        return self.method in BY_INPUTS

    @property
    def search(self) -> Search:
        """How grids are searched where no error is fed back."""
        return "mse" if self.method in BY_INPUTS else self.method  # type: ignore[return-value]


def by_weights(config: RoundConfig) -> Callable[[str, torch.Tensor], torch.Tensor | Codes]:
    """What a matrix of a name becomes, by its weights alone. Raises BadInput for a method that looks at inputs, and for groups that do not fit."""
    if config.by_inputs:
        raise BadInput(
            f"{config.method} is calibrated block by block, which plain Llama-shaped decoders alone can be.",
            expected="rtn, absolute or mse for models of parts, and for those with experts or silent neurons",
            do="take --method mse",
        )
    rule = decoder_rule(4, config.symmetric)

    def rounded(name: str, weight: torch.Tensor) -> torch.Tensor | Codes:
        if name in TABLES:
            return _table_codes(weight.numpy(), name, config)
        if weight.shape[1] % config.group:
            raise BadInput(f"groups of {config.group} do not divide the {weight.shape[1]} columns of {name}.", do="take a smaller --group")
        return _coded(weight, name, rule, config)

    return rounded


@dataclass
class Block:
    """A block in floats. matrices: by the names in MATRICES, [outputs, inputs]; norms: [hidden]."""

    matrices: dict[str, torch.Tensor]
    attention_norm: torch.Tensor
    ffn_norm: torch.Tensor


Visit = Callable[[int, torch.Tensor], None]
"""(stage, its inputs [windows, length, columns]), called just before the stage's matrices are used."""


def through(block: Block, states: torch.Tensor, shape: Shape, rotation: tuple[torch.Tensor, torch.Tensor], visit: Visit | None = None) -> torch.Tensor:
    """States [windows, length, hidden] after a block, in plain torch. rotation: cosine and sine [length, dim / 2].

    `visit` may change the matrices of the stage that it is called for.
    """
    visit = visit or (lambda _, __: None)
    m, windows, length = block.matrices, *states.shape[:2]

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(windows, length, -1, shape.dim).transpose(1, 2)

    x = functional.rms_norm(states, states.shape[2:], block.attention_norm, shape.epsilon)
    visit(0, x)
    q, k, v = (heads(x @ m[name].T) for name in ("q", "k", "v"))
    q, k = (_rotated(one, *rotation) for one in (q, k))
    seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=shape.dim**-0.5, enable_gqa=shape.heads != shape.kv_heads)
    x = seen.transpose(1, 2).flatten(2)
    visit(1, x)
    states = states + x @ m["o"].T
    x = functional.rms_norm(states, states.shape[2:], block.ffn_norm, shape.epsilon)
    visit(2, x)
    x = functional.silu(x @ m["gate"].T) * (x @ m["up"].T)
    visit(3, x)
    return states + x @ m["down"].T


def _rotated(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    a, b = heads.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


@torch.no_grad()
def round_decoder(checkpoint: Checkpoint, config: RoundConfig | None = None, windows: torch.Tensor | None = None, progress: Progress | None = None) -> Weights:
    """The decoder with its matrices in codes, packed for the kernel. windows: token ids [windows, length] to calibrate on, where the method needs them.

    Raises BadInput for a group that does not divide a matrix, for missing or empty calibration text and for tokens that the model has not; BadModel, naming
    the matrix, for weights or activations that are not finite.
    """
    config, progress, shape = config or RoundConfig(), progress or Silent(), checkpoint.shape
    rule = decoder_rule(4, config.symmetric)
    _check_groups(shape, config)
    embedding = checkpoint.read("embedding")
    cosine, sine = rotations(shape.dim, shape.positions, shape.base)
    states, rotation = None, (torch.from_numpy(cosine), torch.from_numpy(sine))
    if config.by_inputs:
        states = _embedded(embedding, _checked(windows, shape, config))
    progress.stage(f"round {shape.layers} blocks ({config.method})", shape.layers)
    layers = []
    for at in range(shape.layers):
        block = read_block(checkpoint, at)
        states = _scaled(block, states, shape, rotation, rule, config, at)
        codes: dict[str, Codes] = {}
        if states is None:
            codes = {name: _coded(weight, f"layers.{at}.{name}", rule, config) for name, weight in block.matrices.items()}
        else:
            states = _calibrated(block, states, shape, rotation, rule, config, at, codes)
        layers.append(Layer(block.attention_norm.numpy(), block.ffn_norm.numpy(), {name: pack(one) for name, one in codes.items()}))
        progress.step()
    packed = _table(embedding, "embedding", config)
    head = packed if shape.tied else _table(checkpoint.read("head"), "head", config)
    return Weights(layers, packed, head, checkpoint.floats("norm"), cosine, sine, shape.heads, shape.kv_heads, shape.dim, shape.epsilon, shape.dim**-0.5)


def read_block(checkpoint: Checkpoint, at: int) -> Block:
    """One block's floats."""

    def floats(name: str) -> torch.Tensor:
        return torch.from_numpy(checkpoint.floats(f"layers.{at}.{name}"))

    return Block({name: floats(name) for stage in STAGES for name in stage}, floats("attention_norm"), floats("ffn_norm"))


def _calibrated(
    block: Block,
    states: torch.Tensor,
    shape: Shape,
    rotation: tuple[torch.Tensor, torch.Tensor],
    rule: Rule,
    config: RoundConfig,
    at: int,
    codes: dict[str, Codes],
) -> torch.Tensor:
    """Round a block's matrices stage by stage into `codes`; the states after the rounded block."""

    def visit(stage: int, x: torch.Tensor) -> None:
        inputs = _inputs(x, f"layers.{at}.{STAGES[stage][0]}")
        for name in STAGES[stage]:
            where = f"layers.{at}.{name}"
            if "gptq" in config.method:
                with _naming(where):
                    found, grid = round_by_inputs(block.matrices[name], inputs.hessian, config.group, rule, config.damp)
                codes[name] = grid.packable(found)
            else:
                codes[name] = _coded(block.matrices[name], where, rule, config, inputs.hessian.diagonal())
            block.matrices[name] = torch.from_numpy(codes[name].dense())

    return through(block, states, shape, _first(rotation, states), visit)


def _scaled(
    block: Block,
    states: torch.Tensor | None,
    shape: Shape,
    rotation: tuple[torch.Tensor, torch.Tensor],
    rule: Rule,
    config: RoundConfig,
    at: int,
) -> torch.Tensor | None:
    """Scale a block's channels by their inputs in place, for the methods that do; the states are handed through."""
    if states is not None and "awq" in config.method:
        seen: dict[int, Inputs] = {}
        through(block, states, shape, _first(rotation, states), lambda stage, x: seen.update({stage: _inputs(x, f"layers.{at}.{STAGES[stage][0]}")}))
        scale_channels(block, seen, shape, config.group, rule)
    return states


def scale_channels(block: Block, seen: dict[int, Inputs], shape: Shape, group: int, rule: Rule) -> None:
    """Multiply columns of each stage by AWQ's scales, and divide what makes its inputs by them: the block computes what it did, up to float rounding.

    The norms take those of q, k, v and of gate, up; v's rows those of o, where the query heads of one key head share them; up's rows those of down.
    """

    def shared(size: torch.Tensor) -> torch.Tensor:
        apart = size.view(shape.kv_heads, -1, shape.dim)
        return apart.mean(1, keepdim=True).expand_as(apart).flatten()

    m = block.matrices
    for stage in (3, 1, 2, 0):  # what is divided by a stage's scales is scaled in its own columns after
        names = STAGES[stage]
        scales = channel_scales([m[name] for name in names], seen[stage], group, rule, shared if stage == 1 else lambda size: size)
        for name in names:
            m[name] = m[name] * scales
        if stage == 0:
            block.attention_norm = block.attention_norm / scales
        elif stage == 1:
            m["v"] = m["v"] / scales.view(shape.kv_heads, -1, shape.dim)[:, 0].reshape(-1, 1)
        elif stage == 2:
            block.ffn_norm = block.ffn_norm / scales
        else:
            m["up"] = m["up"] / scales[:, None]


def _inputs(x: torch.Tensor, name: str) -> Inputs:
    inputs = Inputs(x.shape[-1])
    inputs.add(x, name)
    return inputs


def _coded(weight: torch.Tensor, name: str, rule: Rule, config: RoundConfig, importance: torch.Tensor | None = None) -> Codes:
    """The nearest codes on the grids that the method searches."""
    with _naming(name):
        grid = find_grid(weight, config.group, rule, config.search, importance)
    return grid.packable(grid.codes(weight))


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """An error of weights says which they are."""
    try:
        yield
    except BadModel as error:
        raise BadModel(f"{name}: {error.what}", do=error.do) from error


def _table(table: Array | Codes, name: str, config: RoundConfig) -> Packed:
    """An embedding or a head; codes stay the codes they are."""
    return pack(table if isinstance(table, Codes) else _table_codes(table, name, config))


def _table_codes(table: Array, name: str, config: RoundConfig) -> torch.Tensor | Codes:
    if config.embedding == 32:
        return torch.from_numpy(table)
    rule = decoder_rule(config.embedding, config.symmetric)
    search: Search = "rtn" if config.embedding == 8 else config.search
    group = config.group if config.embedding == 4 else 32
    with _naming(name):
        parts = [(part, find_grid(part, group, rule, search)) for part in torch.split(torch.from_numpy(table), ROWS_TOGETHER)]
    coded = [grid.packable(grid.codes(part)) for part, grid in parts]
    return Codes(*(np.concatenate([getattr(one, field) for one in coded]) for field in ("codes", "scale", "offset")))


def _embedded(embedding: Array | Codes, windows: torch.Tensor) -> torch.Tensor:
    table = embedding.dense() if isinstance(embedding, Codes) else embedding
    return functional.embedding(windows.long(), torch.from_numpy(table))


def _first(rotation: tuple[torch.Tensor, torch.Tensor], states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cosine, sine = (one[: states.shape[1]] for one in rotation)
    return cosine, sine


def _check_groups(shape: Shape, config: RoundConfig) -> None:
    """Raise BadInput where a group does not divide the columns of a matrix."""
    widths = {"q, k, v, gate and up": shape.hidden, "o": shape.heads * shape.dim, "down": shape.ffn}
    for names, width in widths.items():
        if width % config.group:
            fits = [group for group in (32, 64, 128) if all(one % group == 0 for one in widths.values())]
            raise BadInput(
                f"groups of {config.group} do not divide the {width} columns of {names}.",
                expected="groups of " + ", ".join(map(str, fits)) if fits else "a model whose widths are multiples of 32",
                do=f"take --group {fits[-1]}" if fits else "leave this model in float",
            )


def _checked(windows: torch.Tensor | None, shape: Shape, config: RoundConfig) -> torch.Tensor:
    """The calibration windows. Raises BadInput where there is none, or they are of another tokenizer."""
    if windows is None or not windows.numel():
        raise BadInput(
            f"{config.method} needs calibration text, and there is none.",
            expected="some thousand tokens like those it will meet",
            do="give --text FILE",
        )
    if int(windows.max()) >= shape.vocabulary or int(windows.min()) < 0:
        raise BadInput(f"the calibration text has token {int(windows.max()):,}, and the model {shape.vocabulary:,}", do="give the model's own tokenizer")
    return windows
