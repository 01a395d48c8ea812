"""What a quantised model is, as data: a precision per layer, the scales, and the one rule by which numbers become integers.

A real value x becomes the integer q = clamp(round(x / scale) + zero, low, high), ties to even, and stands for (q - zero) * scale. Whoever simulates or
writes a quantised layer follows `integers` here, so that what was simulated is what is deployed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from lissome.core.cache import digest, disk_errors
from lissome.core.config import Config
from lissome.core.errors import BadInput
from lissome.core.model import Model

if TYPE_CHECKING:
    import numpy as np

LayerPrecision = Literal["fp32", "bf16", "int8-dynamic", "int8-static", "w8a16", "w4a16"]
WEIGHT_ONLY = ("w8a16", "w4a16")
ACTIVATION_HIGH = 255
"""Activations are uint8 with a zero point, one scale a tensor."""

QUANTIZATION, SCALES = "quantization.json", "scales.safetensors"


class LayerQuant(Config):
    """How one layer computes.

    fp32: as it is. bf16: weights rounded to bfloat16, products in float32. int8-dynamic and int8-static: int8 weights, one scale per output channel, and
    uint8 activations whose range is found while running, or was calibrated. w8a16 and w4a16: 8- or 4-bit weights, activations in float.
    group: input channels that share one weight scale (weight-only linear layers); None: the whole row of an output channel does.
    symmetric: weights without a zero point; only weight-only layers may have one.
    reduce_range: 7-bit weights, for CPUs whose int8 products saturate.
    """

    precision: LayerPrecision = "int8-static"
    group: Literal[16, 32, 64, 128, 256] | None = None
    symmetric: bool = True
    reduce_range: bool = False

    @pydantic.model_validator(mode="after")
    def _fits(self) -> LayerQuant:
        if self.precision not in WEIGHT_ONLY and (self.group is not None or not self.symmetric):
            raise ValueError(f"group and symmetric=False are for weight-only layers ({', '.join(WEIGHT_ONLY)}), not for {self.precision}")
        return self

    @property
    def integer(self) -> bool:
        """Whether the weights are integers."""
        return self.precision not in ("fp32", "bf16")

    @property
    def levels(self) -> tuple[int, int]:
        """Lowest and highest integer of the weights. Symmetric 8 bits leave -128 out, so that negating a weight changes nothing."""
        bits = 4 if self.precision == "w4a16" else 7 if self.reduce_range and self.precision not in WEIGHT_ONLY else 8
        if not self.symmetric:
            return 0, 2**bits - 1
        return (-8, 7) if bits == 4 else (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)


class Quantization(Config):
    """Precision by layer: name of a Linear, Conv1d, Conv2d or Embedding module -> how it computes. What is missing stays float32.

    norms: convolution -> the batch normalisation that was absorbed into it; that one's output is the layer's output.
    """

    layers: Mapping[str, LayerQuant] = {}
    norms: Mapping[str, str] = {}

    def output_of(self, layer: str) -> str:
        """Name of the module whose output is the layer's result."""
        return self.norms.get(layer, layer)


@dataclass(frozen=True)
class Range:
    """Scale and zero point of a uint8 tensor: values (0 - zero) * scale to (255 - zero) * scale, zero among them."""

    scale: float
    zero: int


@dataclass(frozen=True)
class LayerScales:
    """Scales of one layer.

    weight: float32 [out], or [out, groups]. zero: int32 of the same shape where weights have zero points.
    input: of what goes in (int8-static). output: of what comes out, where the engine needs it to stay in integers (some convolutions).
    """

    weight: np.ndarray
    zero: np.ndarray | None = None
    input: Range | None = None
    output: Range | None = None


@dataclass(frozen=True)
class Scales:
    """Scales of every integer layer, by name."""

    layers: Mapping[str, LayerScales] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as named arrays: "layer/weight", "layer/zero", "layer/input" ([scale, zero point]), "layer/output"."""
        import numpy as np

        found: dict[str, np.ndarray] = {}
        for name, layer in self.layers.items():
            found[f"{name}/weight"] = np.ascontiguousarray(layer.weight, dtype=np.float32)
            if layer.zero is not None:
                found[f"{name}/zero"] = np.ascontiguousarray(layer.zero, dtype=np.int32)
            for part in ("input", "output"):
                kept: Range | None = getattr(layer, part)
                if kept is not None:
                    found[f"{name}/{part}"] = np.array([kept.scale, kept.zero], dtype=np.float32)
        return found

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> Scales:
        """The scales that `arrays` gave."""
        layers: dict[str, dict[str, Any]] = {}
        for key, array in arrays.items():
            name, _, part = key.rpartition("/")
            layers.setdefault(name, {})[part] = Range(float(array[0]), int(array[1])) if part in ("input", "output") else array
        return Scales({name: LayerScales(**parts) for name, parts in layers.items()})


@dataclass(frozen=True)
class Quantized:
    """A model with its quantisation: float weights (equalised and corrected where that was asked for), precision by layer, and scales.

    notes: what the user should know of how it came about. sensitivity: layer -> divergence of the outputs when it alone is quantised, where measured (without
    calibration data: the relative error of its weights).
    """

    model: Model
    quantization: Quantization
    scales: Scales
    notes: tuple[str, ...] = ()
    sensitivity: Mapping[str, float] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all that decides what it computes."""
        numbers = {name: [str(array.dtype), list(array.shape), array.tobytes().hex()] for name, array in self.scales.arrays().items()}
        return digest(self.model.fingerprint, self.quantization.model_dump(mode="json"), numbers)


def grouped(weight: np.ndarray, group: int | None) -> np.ndarray:
    """Weights [out, ...] as rows that share a scale: [out, rest], or [out, groups, group], the last group filled up with zeros."""
    import numpy as np

    flat = weight.reshape(len(weight), -1)
    if group is None:
        return flat
    lacking = -flat.shape[1] % group
    return np.pad(flat, ((0, 0), (0, lacking))).reshape(len(flat), -1, group)


def integers(weight: np.ndarray, quant: LayerQuant, scales: LayerScales) -> np.ndarray:
    """Weights [out, ...] as int32 integers, shaped as `grouped` shapes them."""
    import numpy as np

    rows = grouped(weight.astype(np.float32), quant.group)
    scale = scales.weight.astype(np.float32)[..., None]
    zero = 0 if scales.zero is None else scales.zero[..., None]
    low, high = quant.levels
    found: np.ndarray = np.clip(np.rint(rows / scale) + zero, low, high).astype(np.int32)
    return found


def write_quantization(quantization: Quantization, scales: Scales, folder: Path) -> None:
    """Write quantization.json and scales.safetensors into `folder`."""
    from safetensors.numpy import save_file

    with disk_errors("the quantisation", folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / QUANTIZATION).write_text(quantization.model_dump_json(indent=1), encoding="utf-8")
        save_file(scales.arrays(), str(folder / SCALES))


def read_quantization(folder: Path) -> tuple[Quantization, Scales]:
    """Read what `write_quantization` wrote. Raises BadInput when it is absent, broken, or lacks a layer's scales."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        quantization = Quantization.model_validate(json.loads((folder / QUANTIZATION).read_text(encoding="utf-8")))
        scales = Scales.from_arrays(load_file(str(folder / SCALES)))
    except FileNotFoundError as error:
        raise BadInput(
            f"there is no {Path(str(error.filename or SCALES)).name}.", where=str(folder), expected="a folder that `lissome quantize` wrote"
        ) from error
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise BadInput(f"the quantisation cannot be read: {str(error).splitlines()[0]}", where=str(folder), do="copy the whole folder again") from error
    absent = next((name for name, quant in quantization.layers.items() if quant.integer and name not in scales.layers), None)
    if absent:
        raise BadInput(f"{SCALES} has no scales of the layer {absent}.", where=str(folder), do="copy the whole folder again")
    return quantization, scales
