"""`verify`: does an artifact's contract still hold, measured again on this machine?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lissome.core.cache import Cache
from lissome.core.contract import Verdict
from lissome.core.errors import BadArtifact, BadTask
from lissome.core.manifest import Manifest, read_manifest
from lissome.core.progress import Progress, Silent
from lissome.data import load_task
from lissome.engines.artifact import check_files
from lissome.export.forms import form_bytes
from lissome.machine.identity import identify
from lissome.nn.load import load_model
from lissome.optimize.bench import Bench, make_bench
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
    known = load_task(task or manifest.task.ref, folder / "inputs")
    if known.classes != manifest.task.classes or known.sizes() != dict(manifest.task.sizes):
        raise BadTask("the task's data are not those this artifact was judged on.", where=task or manifest.task.ref, do="give the original data with --task")
    bench = make_bench(model, known, manifest.contract, identify(), cache or Cache(), progress, manifest.seed)
    original, chosen = _rows(bench, manifest, folder)
    fresh = measure_again(bench, original, chosen)
    tested = judge_on_test(bench, original, chosen, anew=True)
    verdict = judge(manifest.contract, fresh, tested)
    return Rechecked(manifest, verdict, bench.machine.fingerprint == manifest.machine.fingerprint, fresh.noise)


def _rows(bench: Bench, manifest: Manifest, folder: Path) -> tuple[Row, Row]:
    from lissome.export.forms import build_form

    base = build_form(bench.recipe, ORIGINAL.engine, ORIGINAL.precision, bench.cache)
    chosen = folder / "engine"
    return Row(ORIGINAL, base, form_bytes(base)), Row(manifest.plan, chosen, form_bytes(chosen))
