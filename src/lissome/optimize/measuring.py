"""`measure`: what models and artifacts cost on this machine, side by side on the task's own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lissome.core.cache import Cache
from lissome.core.config import Config
from lissome.core.errors import BadInput, closest
from lissome.core.manifest import Option, read_manifest
from lissome.core.measurement import Measurement, counted
from lissome.core.progress import Progress, Silent
from lissome.core.task import Task
from lissome.data import load_task
from lissome.engines.artifact import fixed_shapes
from lissome.engines.measure import Result, Subject, measure, speedup
from lissome.engines.process import EngineFailed
from lissome.engines.table import ENGINES, PRECISIONS, engine
from lissome.export.forms import build_form, form_bytes
from lissome.machine.identity import identify
from lissome.nn.flops import count_flops
from lissome.nn.load import load_model
from lissome.optimize.batches import timing_batches, tracing_batch
from lissome.optimize.bench import recipe_of


class MeasuredModel(Config):
    """One model at one batch size. speedups: against the first model at the same batch size, from the same run."""

    model: str
    runs_as: str
    batch: int
    figures: tuple[Measurement, ...]
    speedups: tuple[Measurement, ...] = ()


class Measured(Config):
    """Everything one `measure` found. noise: how noisy the machine was, in a sentence a batch size."""

    machine: str
    rows: tuple[MeasuredModel, ...]
    noise: tuple[str, ...]


def measure_model(
    refs: Sequence[str], task: str, batches: str, engine_name: str, precision: str, rounds: int, *, cache: Cache | None = None, progress: Progress | None = None
) -> Measured:
    """Measure every model of `refs` at every batch size in `batches` ("1,32"). Artifacts run as their plan says, models as engine and precision say.

    Raises BadInput for an engine, precision or batch that does not exist here, EngineFailed when one cannot run.
    """
    cache, progress = cache or Cache(), progress or Silent()
    machine = identify()
    sizes = batch_sizes(batches)
    if rounds < 6:
        raise BadInput(f"--rounds {rounds} is too few for a 95 % interval.", expected="6 or more")
    check_supported(engine_name, precision, machine.isa)
    progress.stage("reading models and task")
    ways = [_Way(ref, task, engine_name, precision, cache) for ref in refs]
    rows: list[MeasuredModel] = []
    noise = []
    for size in sizes:
        subjects = [way.subject(size) for way in ways]
        run = measure(subjects, machine.fingerprint, rounds=rounds, threads=max(1, machine.cores), progress=progress)
        rows += [_row(way, result, run.results[0], machine.fingerprint, size) for way, result in zip(ways, run.results, strict=True)]
        noise.append(f"batch {size}: {run.noise.sentence}")
    return Measured(machine=machine.fingerprint, rows=tuple(rows), noise=tuple(noise))


def batch_sizes(text: str) -> list[int]:
    """ "1,32" -> [1, 32]. Raises BadInput."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise BadInput(f'--batch "{text}" is not a list of batch sizes.', expected='whole numbers above zero: "1" or "1,32"')
    return sizes


def check_supported(name: str, precision: str, isa: Sequence[str]) -> None:
    """Raise BadInput unless the engine runs the precision on this machine, with the engine's own reason."""
    if name not in ENGINES:
        raise BadInput(f'there is no engine "{name}".{closest(name, tuple(ENGINES))}', expected=", ".join(ENGINES))
    if precision not in PRECISIONS:
        raise BadInput(f'there is no precision "{precision}".{closest(precision, PRECISIONS)}', expected=", ".join(PRECISIONS))
    support = engine(name).support(isa)
    if precision not in support.precisions:
        raise BadInput(f"{name} does not run {precision} here: {support.why_not(precision)}", expected=", ".join(support.precisions))


class _Way:
    """One model with everything that its subjects are made of."""

    def __init__(self, ref: str, task: str, engine_name: str, precision: str, cache: Cache):
        self.ref, folder = ref, Path(ref)
        self.artifact = (folder / "manifest.json").is_file()
        self.model = load_model(ref)
        self.task: Task = load_task(task, self.model.directory)
        if self.artifact:
            plan = read_manifest(folder).plan
            self.option, self.form, self.shapes = plan, folder / "engine", fixed_shapes(folder)
        else:
            self.option = Option(engine=engine_name, precision=precision)  # type: ignore[arg-type]
            recipe = recipe_of(self.model, self.task, identify(), tracing_batch(self.task))
            self.form, self.shapes = build_form(recipe, engine_name, precision, cache), None

    def subject(self, batch: int) -> Subject:
        """Itself at a batch size; a form of fixed shapes is given the shapes of that batch."""
        shapes = None if self.shapes is None else {name: (batch, *shape[1:]) for name, shape in self.shapes.items()}
        batches = timing_batches(self.task, batch, self.option.padding)
        return Subject(self.ref, self.option.engine, self.option.precision, self.form, batches, form_bytes(self.form), shapes)

    def flops(self, batch: int) -> int:
        """FLOPs of the original module on the first timed batch."""
        return count_flops(self.model.module, timing_batches(self.task, batch, self.option.padding)[0])


def _row(way: _Way, result: Result, first: Result, machine: str, size: int) -> MeasuredModel:
    if result.failed:
        raise EngineFailed(f"{way.ref} as {way.option.name}: {result.failed}")
    ratios = () if result is first else tuple(speedup(first, result, name, machine) for name in ("latency_p50", "latency_p95"))
    figures = (*result.figures(machine), counted("flops", way.flops(size) / 1e9, "GFLOP", machine))
    return MeasuredModel(model=way.ref, runs_as=way.option.name, batch=size, figures=figures, speedups=ratios)
