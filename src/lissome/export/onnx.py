"""ONNX from a traced program, with a note of which graph value each layer of the original produced."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lissome.core.errors import MissingExtra

SCOPES = "pkg.torch.onnx.name_scopes"


def to_onnx(program: torch.export.ExportedProgram, names: Sequence[str], folder: Path) -> Path:
    """Write `folder/model.onnx` (one output, called "output") and `folder/form.json`; return the ONNX file's path."""
    try:
        import onnx
        import onnxscript  # noqa: F401  the exporter fails late and unclearly without it
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "onnx", "exporting to ONNX") from error
    path = folder / "model.onnx"
    with quiet():
        torch.onnx.export(program, (), str(path), dynamo=True, input_names=list(names), output_names=["output"], external_data=False, verbose=False)
    model = onnx.load(str(path))
    describe(model, folder, "onnxruntime", layer_values(model))
    return path


def describe(model: Any, folder: Path, engine: str, layers: dict[str, str], file: str = "model.onnx") -> None:
    """Write form.json: the file, its inputs with their dimensions (a name where free), and the layers' values."""
    dims = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    form = {"engine": engine, "file": file, "inputs": list(dims), "dims": dims, "layers": layers}
    (folder / "form.json").write_text(json.dumps(form, indent=1), encoding="utf-8")


def layer_values(model: Any) -> dict[str, str]:
    """Layer of the original -> name of the last graph value made inside it, in graph order."""
    found: dict[str, str] = {}
    for node in model.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == SCOPES), None)
        path = ast.literal_eval(scopes) if scopes else []
        if len(path) >= 2 and path[-2].split(".")[0] == "module":  # what was made outside the model has scopes of torch's own
            layer = path[-2].removeprefix("module.")
            found.pop(layer, None)
            found[layer] = node.output[0]
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters' chatter: Python warnings, loggers, and what they print."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
