"""`verify`: does an artifact's contract still hold, measured again on this machine?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lissome.core.cache import Cache, digest, file_sha256
from lissome.core.contract import Verdict
from lissome.core.errors import BadArtifact, BadTask
from lissome.core.manifest import Manifest, read_manifest
from lissome.core.progress import Progress, Silent
from lissome.core.task import Task
from lissome.core.trust import check_target
from lissome.data import load_task
from lissome.data.fingerprint import data_fingerprint
from lissome.data.inputs import load_inputs
from lissome.engines.artifact import check_files
from lissome.export.forms import form_bytes
from lissome.machine.identity import identify
from lissome.nn.load import load_model
from lissome.optimize.bench import Bench, make_bench, original_form
from lissome.optimize.options import ORIGINAL
from lissome.optimize.tables import Row
from lissome.optimize.verify import judge, judge_on_test, measure_again


@dataclass(frozen=True)
class Rechecked:
    """manifest: the artifact's own. verdict: now, here. same_machine: whether the machine is the one it was made on."""

    manifest: Manifest
    verdict: Verdict
    same_machine: bool
    noise: str


def verify(folder: str | Path, task: str | None = None, *, cache: Cache | None = None, progress: Progress | None = None) -> Rechecked:
    """Measure the artifact at `folder` and its original again, and hold the artifact's contract against the new figures.

    task: where the task is now, if it has moved. Scores on the test split are computed anew with the artifact's own files.
    Raises BadArtifact for a broken artifact, BadTask when the task's data are not those the artifact was judged on.
    """
    folder, progress = Path(folder), progress or Silent()
    progress.stage("reading the artifact")
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if not (folder / "model").is_dir():
        raise BadArtifact(
            "it was made from a module in memory, so its original cannot be built again.", where=str(folder), do="optimize from a factory or a directory"
        )
    model = load_model(str(folder / "model"))
    known = _same_task(folder, manifest, task)
    bench = make_bench(model, known, manifest.contract, identify(), cache or Cache(), progress, manifest.seed)
    original, chosen = _rows(bench, manifest, folder)
    fresh = measure_again(bench, original, chosen, anew=True)
    # The bar is the one that the artifact had to clear, on whichever machine.
    tested = judge_on_test(bench, original, chosen, anew=True, seen=max(1, manifest.seen))
    verdict = judge(manifest.contract, fresh, tested)
    return Rechecked(manifest, verdict, bench.machine.fingerprint == manifest.machine.fingerprint, fresh.noise)


def _same_task(folder: Path, manifest: Manifest, ref: str | None) -> Task:
    """The task's data from where they are now, with batches made as the artifact makes them. Raises BadTask when they are other data."""
    kept = manifest.task
    path = Path(ref or kept.ref)
    code = path.suffix.lower() not in (".yaml", ".yml") and not path.is_file()
    if code and ref is None:  # a task file is only data
        check_target(kept.ref, str(folder / "manifest.json"), BadArtifact)
    known = load_task(ref or kept.ref, folder / "model" if code else None)
    data = data_fingerprint(known)
    same = known.classes == kept.classes and known.sizes() == dict(kept.sizes)
    if not same or (kept.data and data != kept.data):
        raise BadTask("the task's data are not those this artifact was judged on.", where=ref or kept.ref, do="give the original data with --task")
    inputs = load_inputs(folder / "inputs")
    recipe = {path.name: file_sha256(path) for path in sorted((folder / "inputs").iterdir())}
    # a fingerprint of its own: what this folder's batches give must not enter the cache as what the task's own give
    key = digest("recheck", known.fingerprint, data, recipe, manifest.plan.name)
    return replace(known, collate=inputs.collate, fingerprint=key)


def _rows(bench: Bench, manifest: Manifest, folder: Path) -> tuple[Row, Row]:
    base = original_form(bench)
    chosen = folder / "engine"
    return Row(ORIGINAL, base, form_bytes(base)), Row(manifest.plan, chosen, form_bytes(chosen))
