"""Open an artifact and predict with it, in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.core.cache import file_sha256
from lissome.core.errors import BadArtifact, BadInput
from lissome.core.manifest import Manifest, read_manifest
from lissome.data.inputs import Inputs, load_inputs, parsed
from lissome.engines.table import Load, Session, load
from lissome.machine.identity import identify

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact: call it with raw inputs (texts, image arrays, rows) or with a batch of named arrays; get outputs [n, ...]."""

    folder: Path
    manifest: Manifest
    inputs: Inputs
    session: Session

    def __call__(self, raw: Sequence[Any] | Mapping[str, np.ndarray]) -> np.ndarray:
        """Outputs [n, ...] float32, in batches of the contract's size. Raises BadInput for no inputs or a missing one."""
        import numpy as np

        if isinstance(raw, Mapping):
            missing = [name for name in self.manifest.model.inputs if name not in raw]
            if missing:
                raise BadInput(f"the input {missing[0]!r} is missing.", where=str(self.folder), expected=", ".join(self.manifest.model.inputs))
            return self.session.run(raw)
        if isinstance(raw, str) or len(raw) == 0:
            raise BadInput("give a list of inputs, at least one.", where=str(self.folder))
        examples = parsed(self.inputs, raw)
        size, padding = self.manifest.contract.batch, self.manifest.plan.padding
        found = []
        for i in range(0, len(examples), size):
            group = examples[i : i + size]
            filled = group + [group[-1]] * (size - len(group)) if padding == "fixed" else group
            found.append(self.session.run(self.inputs.collate(filled, padding))[: len(group)])
        return np.concatenate(found)

    def predict(self, raw: Sequence[Any]) -> list[dict[str, Any]]:
        """One dict an input: label and probability for classifiers, else the plain outputs."""
        import numpy as np

        outputs = self(raw)
        classes = self.manifest.task.classes
        if not classes or outputs.ndim != 2:
            return [{"output": row.tolist()} for row in outputs]
        shifted = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        share = shifted / shifted.sum(axis=-1, keepdims=True)
        return [{"label": classes[int(row.argmax())], "probability": round(float(row.max()), 4)} for row in share]


def open_artifact(folder: str | Path, threads: int | None = None) -> Artifact:
    """Open the artifact at `folder`. Raises BadArtifact when it is none, was changed, or its engine's file is gone."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    plan = manifest.plan
    inputs = load_inputs(folder / "inputs")
    shapes = None
    if plan.padding == "fixed":
        shapes = fixed_shapes(folder)
    how = Load(plan.precision, threads or max(1, identify().cores), shapes)
    return Artifact(folder, manifest, inputs, load(plan.engine, folder / "engine", how))


def fixed_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Input shapes of a form padded to a fixed length, as the artifact recorded them."""
    import json

    shapes = json.loads((folder / "engine" / "form.json").read_text(encoding="utf-8")).get("shapes")
    return None if shapes is None else {name: tuple(shape) for name, shape in shapes.items()}


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise BadArtifact naming the first file that is gone or whose content changed since the manifest was written."""
    for name, sha in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise BadArtifact(f"the file {name} is missing.", where=str(folder), do="copy the whole artifact, or optimize again")
        if file_sha256(path) != sha:
            raise BadArtifact(
                f"the file {name} was changed after the artifact was written.", where=str(folder), do="copy it again from where it was made, or optimize again"
            )
