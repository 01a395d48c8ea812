"""Write an artifact: the manifest, the weights as safetensors, the chosen engine's files, how inputs are made, the evidence, the report.

manifest.json     everything lissome knows about it
model/            the original: architecture and weights (safetensors), tokenizer
changed/          the model that runs, where it is a changed copy of the original: the same files
engine/           the form that runs, with form.json
inputs/           how raw inputs become batches
evidence.npz      per-example test scores of original and chosen
report.html       added by the report room
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lissome.core.cache import digest, disk_errors, file_sha256
from lissome.core.errors import BadInput
from lissome.core.manifest import Manifest, write_manifest
from lissome.data.inputs import save_inputs
from lissome.nn.load import save_model
from lissome.optimize.bench import Bench, original_form, outputs
from lissome.optimize.options import ORIGINAL
from lissome.optimize.tables import Row


def artifact_name(manifest: Manifest) -> str:
    """Key of model, task, contract, machine and seed: the same question on the same machine has the same name."""
    return digest(manifest.model.fingerprint, manifest.task.fingerprint, manifest.contract.model_dump(), manifest.machine.fingerprint, manifest.seed)[:8]


def check_out(out: Path | None) -> None:
    """Raise BadInput when `out` is something that must not be overwritten: a file, or a folder that is not an artifact."""
    if out is None or not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / "manifest.json").is_file()):
        raise BadInput("it exists and is not a lissome artifact, so it is not overwritten.", where=str(out), do="choose another --out")


def write_artifact(bench: Bench, chosen: Row, manifest: Manifest, out: Path | None) -> Path:
    """Write the whole artifact beside its place and move it there in one step; an earlier artifact at the same place is replaced."""
    import numpy as np

    final = out or Path("runs") / artifact_name(manifest)
    check_out(final)
    assert chosen.form is not None
    if _is_program(chosen.form):
        raise BadInput(
            "a module in memory cannot be kept as an artifact in torch's own form", where=bench.model.ref, do="give a factory: package.module:function"
        )
    with disk_errors("the artifact", final):
        final.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
        try:
            shutil.copytree(chosen.form, working / "engine")
            _note_shapes(bench, chosen, working / "engine" / "form.json")
            if bench.model.architecture.kind != "exported":
                save_model(bench.model, working / "model")
                if chosen.variant:
                    save_model(chosen.variant.bench.model, working / "changed")
            (working / "inputs").mkdir()
            save_inputs(bench.task, working / "inputs")
            np.savez(working / "evidence.npz", **_evidence(bench, chosen))
            files = {p.relative_to(working).as_posix(): file_sha256(p) for p in sorted(working.rglob("*")) if p.is_file()}
            write_manifest(manifest.model_copy(update={"files": files}), working)
            working.chmod(0o755)
            if final.exists():
                shutil.rmtree(final)
            working.rename(final)
        finally:
            shutil.rmtree(working, ignore_errors=True)
    return final


def _is_program(form: Path) -> bool:
    """Whether the form is a torch.export file: it is read by unpickling, so it is only ever passed on between lissome's own processes."""
    return str(json.loads((form / "form.json").read_text(encoding="utf-8"))["file"]).endswith(".pt2")


def _note_shapes(bench: Bench, chosen: Row, path: Path) -> None:
    """Keep the fixed input shapes with the form, so that it is loaded as it was measured."""
    form = json.loads(path.read_text(encoding="utf-8"))
    form["shapes"] = bench.shapes(chosen.option)
    path.write_text(json.dumps(form, indent=1), encoding="utf-8")


def _evidence(bench: Bench, chosen: Row) -> dict[str, Any]:
    """Test scores of both, which the verdict has already computed (they come from the cache)."""
    targets = bench.task.splits["test"].targets
    original = original_form(bench)
    return {
        "original": bench.task.score(outputs(bench, ORIGINAL, original, "test"), targets),
        "chosen": bench.task.score(outputs(chosen.home(bench), chosen.option, chosen.form, "test", as_deployed=True), targets),  # type: ignore[arg-type]
    }
