"""Build the form of a model that an engine runs in a precision: a folder with form.json and what it names.

Forms are cached by content: the same model, engine, precision and calibration data are never exported twice.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.core.cache import Cache, digest, file_sha256
from lissome.core.errors import BadInput
from lissome.core.model import Model
from lissome.machine.versions import versions

if TYPE_CHECKING:
    import numpy as np

    Batches = Sequence[Mapping[str, np.ndarray]]

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
    def transformer(self) -> bool:
        """Whether the model is a transformer (int8 then keeps attention's softmax and norms in float)."""
        return self.model.architecture.kind == "huggingface"


def build_form(recipe: Recipe, engine: str, precision: str, cache: Cache) -> Path:
    """The folder of the form, made now or found in the cache. Raises what the exporter raises."""
    key = form_key(recipe, engine, precision)
    return cache.folder("forms", key, lambda folder: _build(recipe, engine, precision, folder, cache))


def form_key(recipe: Recipe, engine: str, precision: str) -> str:
    """Cache key of a form. torch.compile runs torch's own form."""
    family = "torch" if engine.startswith("torch") else engine
    data = recipe.calibration_key if precision in STATIC else ""
    relevant = {k: v for k, v in versions().items() if k in ("torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf")}
    dynamic = recipe.variable_length
    return digest("form-2", recipe.model.fingerprint, family, precision, data, dynamic, recipe.reduce_range, relevant)


def form_files(form: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file of a form."""
    return {p.relative_to(form).as_posix(): file_sha256(p) for p in sorted(form.rglob("*")) if p.is_file()}


def form_bytes(form: Path) -> int:
    """Bytes of the files the engine reads: the graph or config, and the weights."""
    return sum(p.stat().st_size for p in form.rglob("*") if p.is_file() and p.name not in NOT_WEIGHTS)


def _build(recipe: Recipe, engine: str, precision: str, folder: Path, cache: Cache) -> None:
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
        quantized.openvino_int8_static(source, folder, recipe.calibration, transformer=recipe.transformer)
    elif engine == "openvino" and precision in ("fp32", "bf16"):
        quantized.to_openvino(source, folder, half=precision == "bf16")
    else:
        raise BadInput(f"there is no {precision} form for {engine}.")


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
