"""A decoder into the kernel's folder, and into GGUF where that is asked for: what `lissome pack` calls."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lissome.compress.quantize.decoder import RoundConfig, by_weights, round_decoder
from lissome.compress.quantize.grids import decoder_rule
from lissome.compress.quantize.store import is_quantized, load_quantized
from lissome.core.cache import check_out
from lissome.core.errors import BadInput, BadModel
from lissome.core.progress import Progress, Silent
from lissome.core.quantization import LayerQuant, LayerScales, Quantized, integers
from lissome.core.task import LANGUAGE
from lissome.data import load_task
from lissome.data.packing import pack, text_files, texts, token_ids
from lissome.kernels.decoder.native import Weights
from lissome.kernels.decoder.packed import Codes
from lissome.nn.decoder.checkpoint import Checkpoint, open_checkpoint, read_json, spoken
from lissome.nn.decoder.folder import DESCRIPTION, load_decoder, save_decoder, weights_bytes
from lissome.nn.decoder.gguf import BLOCK, read_gguf
from lissome.nn.decoder.gguf_out import save_gguf
from lissome.nn.decoder.inputs import measured_inputs
from lissome.nn.decoder.modules import from_llama, from_module, is_modular
from lissome.nn.decoder.pack_file import pack_file
from lissome.nn.load import load_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MEASURED = 4
"""Windows of calibration text on which the rounding of inputs is measured."""


@dataclass(frozen=True)
class PackedFolder:
    """What was written. mb, mb_float: of the matrices, as packed and in float32. method: None where codes were kept as they were."""

    folder: str
    gguf: str | None
    method: str | None
    mb: float
    mb_float: float


def pack_to(
    out: Path,
    ref: str,
    config: RoundConfig | None = None,
    *,
    text: Path | None = None,
    task: str | None = None,
    gguf: Path | None = None,
    progress: Progress | None = None,
) -> PackedFolder:
    """Write the decoder that `ref` names into `out`: a Hugging Face folder, a GGUF file, a folder of `lissome quantize` or `qat`,
    whose codes are kept, or a model of parts, also one with experts or silent neurons.

    config: how float weights become codes; without it, "mse", and codes stay the codes they are. text: a file or folder of calibration text; task: a
    language-modelling task, whose calibration split serves. Raises BadInput for text that is empty, BadModel for what cannot be read.
    """
    check_out(out, DESCRIPTION)
    progress = progress or Silent()
    if gguf is not None and config is not None and config.group != BLOCK:
        raise BadInput(f"GGUF has no place for groups of {config.group}.", expected=f"groups of {BLOCK}", do=f"take --group {BLOCK}, or leave --gguf out")
    path = Path(ref).expanduser()
    if path.is_dir() and is_modular(path) and not is_quantized(str(path)):
        if gguf is not None:
            raise BadInput("GGUF has plain Llama-shaped decoders alone.", where=ref, do="leave --gguf out")
        config = config or RoundConfig()
        rounding = by_weights(config)
        progress.stage("reading the model")
        module, (tokenizer, about) = load_model(str(path)).module, spoken(path, read_json(path / "config.json") or {})
        progress.stage(f"rounding its matrices ({config.method})")
        weights = from_module(module, rounding, ref)
        save_decoder(weights, out, tokenizer, about)
        return _described(out, gguf, config.method, weights)
    checkpoint = open_checkpoint(path)
    if config is None and path.is_file() and isinstance(checkpoint.read("layers.0.q"), Codes):  # slice by slice: the model is never in memory
        pack_file(read_gguf(path), out, checkpoint.tokenizer, checkpoint.about)
        weights, method = load_decoder(out)[0], None
    else:
        weights, method = _weights(path, checkpoint, config, text, task, progress)
        save_decoder(weights, out, checkpoint.tokenizer, checkpoint.about)
    if gguf is not None:
        save_gguf(gguf, weights, checkpoint.shape, checkpoint.tokenizer, checkpoint.about, out.name)
    return _described(out, gguf, method, weights)


def _described(out: Path, gguf: Path | None, method: str | None, weights: Weights) -> PackedFolder:
    floats = [one.rows * one.columns for one in _matrices(weights)]
    return PackedFolder(str(out), None if gguf is None else str(gguf), method, weights_bytes(weights) / 1e6, sum(floats) * 4 / 1e6)


def _weights(
    path: Path, checkpoint: Checkpoint, config: RoundConfig | None, text: Path | None, task: str | None, progress: Progress
) -> tuple[Weights, str | None]:
    """The packed weights, and the method by which they were rounded, None where they are codes already."""
    if path.is_dir() and is_quantized(str(path)):
        if config is not None:
            raise BadInput("the model is quantised already; its codes are packed as they are.", where=str(path), do="leave --method out")
        return from_quantized(load_quantized(path)), None
    config = config or RoundConfig()
    windows = calibration_windows(checkpoint, config, text, task) if config.by_inputs else None
    weights = round_decoder(checkpoint, config, windows, progress)
    return weights if windows is None else measured_inputs(weights, windows[:MEASURED], progress=progress), config.method


def calibration_windows(checkpoint: Checkpoint, config: RoundConfig, text: Path | None, task: str | None = None) -> torch.Tensor:
    """Token ids [windows, length] of the text, or of the task's calibration split. Raises BadInput where there are none."""
    length = min(config.length, checkpoint.shape.positions)
    most = max(1, config.tokens // length)
    if task is not None:
        return _of_task(task, checkpoint, most)
    if text is None:
        raise BadInput(f"{config.method} needs calibration text, and there is none.", expected="some thousand tokens", do="give --text FILE or --task TASK")
    return windows_of(texts(text_files(text, "--text")), checkpoint.tokenizer, separator(checkpoint), length, most, str(text))


def windows_of(documents: Any, tokenizer: Tokenizer, between: int, length: int, most: int, where: str = "") -> torch.Tensor:
    """Up to `most` windows of `length` tokens, or a single shorter one; documents in an order of lot that is always the same."""
    every = list(documents)
    ids = token_ids((every[i] for i in np.random.default_rng(0).permutation(len(every))), tokenizer)
    found = [window.ids for window in itertools.islice(pack(ids, length, between, remainder="pad"), most)]
    whole = [one for one in found if len(one) == length] or found
    if not whole:
        raise BadInput("the calibration text is empty.", where=where, expected="some thousand tokens like those the model will meet", do="give another --text")
    return torch.from_numpy(np.stack(whole)).long()


def _of_task(name: str, checkpoint: Checkpoint, most: int) -> torch.Tensor:
    folder = Path(checkpoint.where)
    task = load_task(name, folder if folder.is_dir() else None)
    if task.kind != LANGUAGE:
        raise BadInput(f'the task "{name}" is {task.kind}', expected="a language-modelling task", do="give --text FILE")
    rows = [np.asarray(one) for one in task.splits["calibration"].inputs[:most]]
    whole = [one for one in rows if len(one) == len(rows[0])]
    return torch.from_numpy(np.stack(whole)).long()


def separator(checkpoint: Checkpoint) -> int:
    """The token between documents: the end of text, or else what ends an answer."""
    own = checkpoint.tokenizer.token_to_id("<|endoftext|>")
    return own if own is not None else next(iter(checkpoint.about.end_tokens), 0)


def from_quantized(quantized: Quantized) -> Weights:
    """A quantised Llama-shaped model as the kernel reads it: its own integers, its scales in half precision; what is float in it stays float."""
    module: Any = quantized.model.module
    if getattr(getattr(module, "config", None), "model_type", None) != "llama":
        raise BadModel("only Llama-shaped decoders are packed.", where=quantized.model.ref, expected="a quantised decoder")
    layers, scales = quantized.quantization.layers, quantized.scales.layers

    def rounding(name: str, weight: torch.Tensor) -> torch.Tensor | Codes:
        whole = name if name in layers else f"{module.base_model_prefix}.{name}"
        quant = layers.get(whole)
        if quant is None:
            return weight
        if quant.precision not in ("w4a16", "w8a16"):
            raise BadInput(f"the layer {whole} is {quant.precision}, which the decoder does not compute.", expected="w4a16, w8a16 or fp32")
        return codes_of(weight, quant, scales[whole])

    return from_llama(module, rounding)


def codes_of(weight: torch.Tensor, quant: LayerQuant, scales: LayerScales) -> Codes:
    """The integers of a layer as the kernel's codes. Raises BadInput for groups that it does not take."""
    group = quant.group or BLOCK
    if weight.shape[1] % group or (quant.precision == "w8a16" and not quant.symmetric):
        raise BadInput(
            f"{list(weight.shape)} weights in groups of {group} are not offered", expected="4 bits, or symmetric 8, in groups that divide the columns"
        )
    rows, groups = len(weight), weight.shape[1] // group
    whole = integers(weight.float().numpy(), quant, scales).reshape(rows, -1)[:, : weight.shape[1]]
    scale = np.broadcast_to(np.asarray(scales.weight).reshape(rows, -1), (rows, groups)).astype(np.float16)
    if quant.precision == "w8a16":
        return Codes(whole.astype(np.int8), scale, np.zeros_like(scale))
    rule = decoder_rule(4, quant.symmetric)
    zero = np.float32(8) if scales.zero is None else np.broadcast_to(np.asarray(scales.zero, np.float32).reshape(rows, -1), (rows, groups))
    codes = whole + 8 if scales.zero is None else whole
    return Codes(codes.clip(rule.low, rule.high).astype(np.uint8), scale, (-zero * scale.astype(np.float32)).astype(np.float16))


def _matrices(weights: Weights) -> list[Any]:
    every = [one for layer in weights.layers for one in layer.matrices.values()]
    return [*every, weights.embedding, *([] if weights.head is weights.embedding else [weights.head])]


def as_document(found: PackedFolder) -> dict[str, Any]:
    """As `--json` prints it."""
    return dataclasses.asdict(found)
