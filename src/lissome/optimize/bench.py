"""The bench: one model, one task, one contract, one machine. Everything the steps of an optimisation share."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lissome.core.cache import Cache, digest
from lissome.core.contract import Contract
from lissome.core.errors import BadModel, BadTask, OutOfTime
from lissome.core.manifest import MachineInfo, Option, PartChoice
from lissome.core.model import Model
from lissome.core.progress import Progress
from lissome.core.quantization import Quantized
from lissome.core.task import Split, SplitName, Task
from lissome.engines.process import Process, write_batches
from lissome.export.forms import Recipe, build_form, form_key
from lissome.machine.versions import versions
from lissome.optimize.batches import SCORING_BATCH, calibration_batches, judging_order, part_of, scoring_batches, tracing_batch
from lissome.optimize.options import ORIGINAL, reduce_range

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Bench:
    """What an optimisation works on. deadline: seconds on the monotonic clock after which nothing new is begun and a training ends, or None.

    quantized: what "mixed" forms of the model are made from.
    """

    model: Model
    task: Task
    contract: Contract
    machine: MachineInfo
    cache: Cache
    recipe: Recipe
    progress: Progress
    deadline: float | None = None
    seed: int = 0
    quantized: Quantized | None = None

    @property
    def threads(self) -> int:
        """Threads every engine is given: the usable cores."""
        return max(1, self.machine.cores)

    def time_is_up(self, reserve: float = 0.0) -> bool:
        """Whether --spend is used up, or would be by something that takes `reserve` seconds."""
        return self.deadline is not None and time.monotonic() + reserve > self.deadline

    def check_spend(self, before: str) -> None:
        """Raise OutOfTime where --spend is used up. before: what comes next, in the past tense."""
        if self.time_is_up():
            raise OutOfTime(f"--spend was used up before {before}")

    def shapes(self, option: Option) -> dict[str, tuple[int, ...]] | None:
        """Input shapes of a form that is padded to a fixed length; None for free shapes."""
        if option.padding != "fixed":
            return None
        example = self.task.splits["calibration"].inputs[0]
        batch = self.task.collate([example] * self.contract.batch, "fixed")
        return {name: tuple(array.shape) for name, array in batch.items() if name in self.recipe.inputs}

    def key(self, option: Option, *parts: object) -> str:
        """Cache key of something learned about an option on this machine."""
        form = form_key(self.recipe, option.engine, option.precision)
        form += self.quantized.fingerprint if self.quantized and option.precision == "mixed" else ""
        return digest("row-1", form, option.engine, option.precision, self.machine.fingerprint, versions(), *parts)


@dataclass(frozen=True)
class Variant:
    """A changed copy of the model. bench: the same bench with that copy on it. change: what was done to it, in a few words that no other variant has.

    parts: the same, part by part; steps: in turn, with what each took.
    """

    bench: Bench
    change: str
    parts: tuple[PartChoice, ...] = ()
    steps: tuple[str, ...] = ()


def vary(
    bench: Bench, model: Model, change: str, parts: tuple[PartChoice, ...] = (), steps: tuple[str, ...] = (), quantized: Quantized | None = None
) -> Variant:
    """A changed copy of the bench's model as a variant. quantized: where it is a quantised one, how."""
    return Variant(replace(bench, model=model, recipe=replace(bench.recipe, model=model), quantized=quantized), change, parts, steps)


def formed(bench: Bench, option: Option) -> Path:
    """The form of the bench's model that `option` runs, made now or found in the cache."""
    return build_form(bench.recipe, option.engine, option.precision, bench.cache, quantized=bench.quantized if option.precision == "mixed" else None)


def make_bench(model: Model, task: Task, contract: Contract, machine: MachineInfo, cache: Cache, progress: Progress, seed: int = 0) -> Bench:
    """Check that model and task belong together, and lay out the bench. Raises BadModel or BadTask where they do not."""
    example = tracing_batch(task)
    check_head(model, task, example)
    recipe = recipe_of(model, task, machine, example)
    deadline = None if contract.spend_seconds is None else time.monotonic() + contract.spend_seconds
    return Bench(model, task, contract, machine, cache, recipe, progress, deadline, seed)


def recipe_of(model: Model, task: Task, machine: MachineInfo, example: dict[str, np.ndarray]) -> Recipe:
    """What forms of `model` for `task` are made from on `machine`."""
    return Recipe(model, example, calibration_batches(task), task.fingerprint, task.variable_length, reduce_range(machine))


def original_form(bench: Bench) -> Path:
    """The form of the original, which everything is compared with."""
    return formed(bench, ORIGINAL)


def check_head(model: Model, task: Task, example: dict[str, np.ndarray]) -> None:
    """Run two examples and raise unless there is one finite output per class."""
    import torch

    from lissome.nn.call import call

    inputs = {name: torch.from_numpy(array) for name, array in example.items()}
    try:
        with torch.no_grad():
            outputs = call(model.module, inputs)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        shapes = ", ".join(f"{name} {tuple(array.shape)} {array.dtype}" for name, array in example.items())
        reason = str(error).strip().splitlines()
        raise BadModel(
            f"the model cannot run the task's examples: {reason[0][:200] if reason else error!r}", where=model.ref, expected=f"a model that takes {shapes}"
        ) from error
    if not torch.isfinite(outputs).all():
        raise BadModel("the model gives NaN or infinite outputs on the task's examples.", where=model.ref, do="check its weights and how its inputs are scaled")
    if not task.classes:
        return
    size = outputs.shape[-1] if outputs.ndim == 2 else 0
    if size != len(task.classes):
        raise BadTask(
            f"the labels do not fit the model's head: the model gives {size or tuple(outputs.shape)} outputs, "
            f"the task has {len(task.classes)} classes ({_some(task.classes)}).",
            where=task.ref,
            do="use a model with a head for these classes, or train one (`lissome fine-tune`)",
        )


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")


def judged(bench: Bench, split: SplitName, count: int | None = None) -> Split:
    """The examples a form is scored on: the test split as it is, or the first `count` (all, when None) of the shuffled validation split."""
    whole = bench.task.splits[split]
    return part_of(whole, judging_order(bench.task, bench.seed)[:count]) if split == "validation" else whole


def outputs(
    bench: Bench, option: Option, form: Path, split: SplitName, *, count: int | None = None, as_deployed: bool = False, anew: bool = False
) -> np.ndarray:
    """Outputs of a form on the examples of `judged` [n, ...], computed in a process of its own, cached.

    as_deployed: with the contract's batch size and the option's padding, exactly as it will run; otherwise in large batches, which only forms
    that quantise activations as they come can tell apart (these always run as deployed). anew: whatever is cached.
    """
    import numpy as np

    deployed = as_deployed or option.precision == "int8-dynamic"
    size = bench.contract.batch if deployed else SCORING_BATCH
    padding = option.padding if deployed else "longest"
    shapes = bench.shapes(option) if deployed else None

    def make(folder: Path) -> None:
        ordered = scoring_batches(bench.task, judged(bench, split, count), size, padding, full=shapes is not None)
        with tempfile.TemporaryDirectory(prefix="lissome-") as temporary, Process(bench.threads) as process:
            probe = write_batches(ordered.batches[:1], Path(temporary) / "first.npz")
            everything = write_batches(ordered.batches, Path(temporary) / "all.npz")
            process.load(option.engine, form, option.precision, probe, shapes)
            process.ask("outputs", batches=str(everything), to=str(Path(temporary) / "outputs.npy"))
            found = np.load(Path(temporary) / "outputs.npy", allow_pickle=False)
        np.save(folder / "outputs.npy", ordered.restore(found))

    if anew:
        with tempfile.TemporaryDirectory(prefix="lissome-") as folder:
            make(Path(folder))
            fresh: np.ndarray = np.load(Path(folder) / "outputs.npy", allow_pickle=False)
            return fresh
    key = bench.key(option, "outputs", split, bench.task.fingerprint, size, padding, shapes, count, bench.seed)
    array: np.ndarray = np.load(bench.cache.folder("outputs", key, make) / "outputs.npy", allow_pickle=False)
    return array
