"""Build the form of a model that an engine runs in a precision: a folder with form.json and what it names.

Forms are cached by content: the same model, engine, precision and calibration data are never exported twice.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.core.cache import Cache, digest
from lissome.core.errors import BadInput
from lissome.core.model import Model
from lissome.core.quantization import Quantized
from lissome.machine.versions import versions

if TYPE_CHECKING:
    import numpy as np

    Batches = Sequence[Mapping[str, np.ndarray]]

FORMS = {
    "torch": ("fp32", "bf16"),
    "torch.compile": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "int8-dynamic", "int8-static"),
    "openvino": ("fp32", "bf16", "int8-static"),
}
"""Precisions that can be built for each engine; which of them run here is the engine's to say."""
MIXED = {"onnxruntime": ("bf16", "int8-dynamic", "int8-static", "w8a16", "w4a16"), "openvino": ("bf16", "int8-static", "w8a16", "w4a16")}
"""Engines that take a precision per layer, and which."""
STATIC = ("int8-static",)
NOT_WEIGHTS = ("form.json", "architecture.json")


@dataclass(frozen=True)
class Recipe:
    """What forms are made from.

    example: a batch of two or more examples. calibration: batches for int8 ranges. calibration_key: names that data.
    variable_length: whether dimension 1 is free. reduce_range: 7-bit weights, for CPUs whose int8 products saturate.
    """

    model: Model
    example: Mapping[str, np.ndarray]
    calibration: Batches
    calibration_key: str
    variable_length: bool = False
    reduce_range: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs the model takes, in order."""
        from lissome.nn.call import accepted

        return accepted(self.model.module, tuple(self.example))

    @property
    def traced(self) -> list[tuple[str, str, list[int | str]]]:
        """What a trace fixes of each input: its name, dtype, and dimensions, "n" where they stay free."""
        found = []
        for name in self.inputs:
            array = self.example[name]
            free = (0, 1) if self.variable_length and array.ndim == 2 else (0,)
            found.append((name, str(array.dtype), ["n" if i in free else size for i, size in enumerate(array.shape)]))
        return found


def build_form(recipe: Recipe, engine: str, precision: str, cache: Cache, *, quantized: Quantized | None = None) -> Path:
    """The folder of the form, made now or found in the cache. Raises what the exporter raises.

    quantized: what a "mixed" form is made from; its own model's weights count then, and the recipe's model is the original they came from.
    """
    if precision == "mixed":
        return _mixed_form(recipe, engine, cache, quantized)
    key = form_key(recipe, engine, precision)
    return cache.folder("forms", key, lambda folder: _build(recipe, engine, precision, folder, cache))


def form_key(recipe: Recipe, engine: str, precision: str) -> str:
    """Cache key of a form. torch.compile runs torch's own form."""
    family = "torch" if engine.startswith("torch") else engine
    data = recipe.calibration_key if precision in STATIC else ""
    relevant = {k: v for k, v in versions().items() if k in ("torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf")}
    return digest("form-4", recipe.model.fingerprint, recipe.traced, family, precision, data, recipe.reduce_range, relevant)


def _mixed_form(recipe: Recipe, engine: str, cache: Cache, quantized: Quantized | None) -> Path:
    """A form with a precision per layer. Raises BadInput where the engine does not take one of them."""
    if quantized is None:
        raise BadInput("a mixed form is made from a quantised model, and none was given.", do="quantize the model first, and pass the result as `quantized`")
    known = MIXED.get(engine, ())
    alien = next(((name, q.precision) for name, q in quantized.quantization.layers.items() if q.precision not in ("fp32", *known)), None)
    if not known or alien:
        what = f"takes no {alien[1]} layer, which {alien[0]} is to be" if known and alien else "takes no precision per layer"
        raise BadInput(f"{engine} {what}.", expected=", ".join(known) or f"one of the engines {', '.join(MIXED)}")
    own = dataclasses.replace(recipe, model=quantized.model)
    key = digest("mixed-2", form_key(own, engine, "mixed"), quantized.fingerprint)

    def make(folder: Path) -> None:
        from lissome.export.qdq import write_quantized

        source = build_form(own, "onnxruntime", "fp32", cache)
        if engine == "onnxruntime":
            write_quantized(source, folder, quantized.quantization, quantized.scales, fused=True)
            return
        from lissome.export.quantized import to_openvino

        with tempfile.TemporaryDirectory(prefix="lissome-") as temporary:
            write_quantized(source, Path(temporary), quantized.quantization, quantized.scales)
            to_openvino(Path(temporary), folder, half=False)

    return cache.folder("forms", key, make)


def form_bytes(form: Path) -> int:
    """Bytes of the files the engine reads: the graph or config, and the weights."""
    return sum(p.stat().st_size for p in form.rglob("*") if p.is_file() and p.name not in NOT_WEIGHTS)


def _build(recipe: Recipe, engine: str, precision: str, folder: Path, cache: Cache) -> None:
    if precision not in FORMS.get(engine, ()):
        raise BadInput(f"there is no {precision} form for {engine}.")
    if engine in ("torch", "torch.compile"):
        _torch_form(recipe, precision, folder)
        return
    from lissome.export import quantized

    if (engine, precision) == ("onnxruntime", "fp32"):
        _onnx_form(recipe, folder)
        return
    source = build_form(recipe, "onnxruntime", "fp32", cache)
    if engine == "onnxruntime" and precision == "int8-dynamic":
        quantized.onnx_int8_dynamic(source, folder, reduce_range=recipe.reduce_range)
    elif engine == "onnxruntime" and precision == "int8-static":
        quantized.onnx_int8_static(source, folder, recipe.calibration, reduce_range=recipe.reduce_range)
    elif engine == "openvino" and precision == "int8-static":
        quantized.openvino_int8_static(source, folder, recipe.calibration, reduce_range=recipe.reduce_range)
    else:
        quantized.to_openvino(source, folder, half=precision == "bf16")


def _onnx_form(recipe: Recipe, folder: Path) -> None:
    from lissome.export.onnx import to_onnx

    to_onnx(_program(recipe), recipe.inputs, folder)


def _torch_form(recipe: Recipe, precision: str, folder: Path) -> None:
    import torch

    from lissome.nn.load import save_model

    model, file = recipe.model, "model.safetensors"
    if model.architecture.kind == "exported":
        file = "model.pt2"  # a private hand-over to the measured process; never part of an artifact
        torch.export.save(_program(recipe), str(folder / file))
    else:
        module: Any = model.module if precision == "fp32" else copy.deepcopy(model.module).to(torch.bfloat16)
        save_model(Model(module, model.architecture, model.ref, model.fingerprint), folder)
    form = {"engine": "torch", "file": file, "inputs": list(recipe.inputs), "dims": {}, "layers": {}}
    (folder / "form.json").write_text(json.dumps(form, indent=1), encoding="utf-8")


def _program(recipe: Recipe) -> Any:
    from lissome.export.program import export_program

    return export_program(recipe.model.module, recipe.example, recipe.variable_length)
