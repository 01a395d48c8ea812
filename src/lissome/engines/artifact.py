"""Open an artifact and predict with it, in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.core.cache import file_sha256
from lissome.core.errors import BadArtifact, BadInput, EnvironmentLacks
from lissome.core.manifest import MachineInfo, Manifest, Option, read_manifest
from lissome.data.inputs import Inputs, load_inputs, parsed
from lissome.engines.safety import check_form
from lissome.engines.table import ENGINES, Load, Session, engine, load
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
    """Open the artifact at `folder`.

    Raises BadArtifact when it is none, was changed or needs code that the user did not name; EnvironmentLacks when this machine cannot run its plan.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    check_form(folder / "engine")
    plan, machine = manifest.plan, identify()
    _check_support(plan, machine, folder)
    inputs = load_inputs(folder / "inputs")
    how = Load(plan.precision, threads or max(1, machine.cores), fixed_shapes(folder))
    return Artifact(folder, manifest, inputs, load(plan.engine, folder / "engine", how))


def fixed_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Input shapes of a form padded to a fixed length, as the artifact recorded them."""
    import json

    shapes = json.loads((folder / "engine" / "form.json").read_text(encoding="utf-8")).get("shapes")
    return None if shapes is None else {name: tuple(shape) for name, shape in shapes.items()}


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise BadArtifact naming the first file that is gone, was changed, or was added (beside the report and notes in the top folder)."""
    for name, sha in manifest.files.items():
        path = folder / name
        if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
            raise BadArtifact(f"its manifest lists {name}, which lies outside the artifact.", where=str(folder), do="do not use it; ask whoever made it")
        if not path.is_file():
            raise BadArtifact(f"the file {name} is missing.", where=str(folder), do="copy the whole artifact, or optimize again")
        if file_sha256(path) != sha:
            raise BadArtifact(
                f"the file {name} was changed after the artifact was written.", where=str(folder), do="copy it again from where it was made, or optimize again"
            )
    for part in ("engine", "inputs", "model"):
        for path in sorted((folder / part).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if not path.is_dir() and name not in manifest.files:
                raise BadArtifact(f"the file {name} was added after the artifact was written.", where=str(folder), do="remove it, or copy the artifact again")


def _check_support(plan: Option, machine: MachineInfo, folder: Path) -> None:
    """Raise unless this machine's engine runs the plan's precision. An engine that is not installed is left to `load`, which names the extra."""
    if plan.engine not in ENGINES:
        raise BadArtifact(f"this lissome knows no engine {plan.engine!r}.", where=str(folder), expected=", ".join(ENGINES), do="use the lissome that wrote it")
    support = engine(plan.engine).support(machine.isa)
    if support.version is None or plan.precision in support.precisions:
        return
    reason = support.why_not(plan.precision)
    raise EnvironmentLacks(f"the artifact's {plan.engine} {plan.precision} cannot run here: {reason}", where=str(folder), do="optimize again on this machine")
