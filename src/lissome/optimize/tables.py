"""The tables: what every option costs and saves, learned by building, running and timing it here."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lissome.core.cache import digest
from lissome.core.errors import EnvironmentLacks, LissomeError
from lissome.core.manifest import Option
from lissome.engines.measure import Result, Subject, measure
from lissome.engines.process import EngineFailed, Process, write_batches
from lissome.export.forms import form_bytes
from lissome.export.parity import TOLERANCE, Parity, compare, first_departure
from lissome.machine.memory import current_rss
from lissome.machine.versions import versions
from lissome.optimize.batches import scoring_batches, timing_batches
from lissome.optimize.bench import Bench, Variant, formed, judged, original_form, outputs
from lissome.optimize.options import ORIGINAL

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

ROUNDS = 9
COMPILE_S = 60.0
"""Seconds that must be left for torch.compile: it compiles once to be scored and once more to be timed."""
SCREENED = 512
"""Validation examples that every option is scored on; only those that may be chosen are then scored on all of them."""


@dataclass(eq=False)  # a row is itself: comparing scores would compare arrays
class Row:
    """One option and what is known of it.

    scores: per-example scores on the validation split, in the order of `judging_order`; a first part of it until the row is worth all of them.
    trouble: why it is out, or None; skipped: out before it was tried. keepable: whether an artifact can hold it.
    original: the original's result of the same interleaved run. variant: the changed copy of the model that this row runs; None for the model itself.
    """

    option: Option
    form: Path | None = None
    size: int = 0
    parity: Parity | None = None
    scores: np.ndarray | None = None
    result: Result | None = None
    original: Result | None = None
    trouble: str | None = None
    skipped: bool = False
    keepable: bool = True
    noise: str = ""
    notes: list[str] = field(default_factory=list)
    variant: Variant | None = None

    def home(self, bench: Bench) -> Bench:
        """The bench with the model that this row runs."""
        return self.variant.bench if self.variant else bench

    @property
    def usable(self) -> bool:
        """Built, equal enough, scored and timed."""
        return self.trouble is None and self.scores is not None and self.result is not None


def build_rows(bench: Bench, options: Sequence[Option], passed_over: Collection[str] = ()) -> list[Row]:
    """Build, gate and score every option on the validation split; the original comes first and must work.

    passed_over: names of options that an earlier run with the same limits had no time for; equal questions get equal answers.
    """
    bench.progress.stage(f"building and scoring {len(options) + 1} ways", len(options) + 1)
    original = built(bench, ORIGINAL)
    reference = outputs(bench, ORIGINAL, _form(original), "validation")
    original.scores = _scores(bench, reference)
    original.parity = compare(reference, reference, "fp32")
    bench.progress.step(note=ORIGINAL.name)
    rows = [original]
    for option in options:
        if bench.time_is_up(COMPILE_S if option.engine == "torch.compile" else 0.0) or option.name in passed_over:
            rows.append(Row(option, trouble="the time left of --spend was too short for it", skipped=True))
            continue
        bench.progress.step(0, note=option.name)
        rows.append(_candidate(bench, option, reference))
        bench.progress.step(note=option.name)
    return rows


def build_variant(variant: Variant, options: Sequence[Option]) -> list[Row]:
    """Build, gate and score a changed copy of the model under every option.

    The gate compares with the copy itself, run by torch in float32; a quantised copy with its rounding simulated.
    """
    bench = variant.bench
    bench.progress.stage(f"building and scoring {variant.change}", len(options) + 1)
    reference = _simulated(bench) if bench.quantized else outputs(bench, ORIGINAL, original_form(bench), "validation", count=_screened(bench))
    bench.progress.step(note=variant.change)
    rows = []
    for option in options:
        rows.append(_candidate(bench, option.model_copy(update={"change": variant.change}), reference, variant))
        bench.progress.step(note=option.name)
    return rows


def _simulated(bench: Bench) -> np.ndarray:
    """Outputs of the quantised model's twin in torch on the examples that are screened [n, ...]."""
    split = judged(bench, "validation", _screened(bench))
    ordered = scoring_batches(bench.task, split)
    return ordered.restore(computed(twin(bench), ordered.batches))


def twin(bench: Bench) -> nn.Module:
    """The bench's model as torch runs it: with its rounding simulated, where it is quantised."""
    if bench.quantized is None:
        return bench.model.module
    from lissome.compress.quantize.simulate import simulate

    return simulate(bench.model.module, bench.quantized.quantization, bench.quantized.scales).eval()


def _candidate(bench: Bench, option: Option, reference: np.ndarray, variant: Variant | None = None) -> Row:
    try:
        row = built(bench, option)
        row.variant = variant
        found = outputs(bench, option, _form(row), "validation", count=_screened(bench))
    except EngineFailed as error:
        return Row(option, trouble=f"the engine failed: {error.what}")
    except EnvironmentLacks:
        raise
    except LissomeError as error:
        return Row(option, trouble=error.what)
    except Exception as error:  # noqa: BLE001  exporters and quantisers raise anything; one form's failure must not end the others
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return Row(option, trouble=f"building it failed: {type(error).__name__}: {reason[:200]}")
    row.parity = compare(reference[: len(found)], found, option.precision)
    if not row.parity.ok:
        row.parity = _explained(bench, row)
        row.trouble = row.parity.sentence()
        return row
    row.scores = _scores(bench, found)
    return row


def built(bench: Bench, option: Option) -> Row:
    """The bench's model in the form that `option` runs; neither gated, nor scored, nor timed yet."""
    form = formed(bench, option)
    keepable = not (option.engine.startswith("torch") and bench.model.architecture.kind == "exported")
    return Row(option, form, form_bytes(form), keepable=keepable)


def _form(row: Row) -> Path:
    assert row.form is not None
    return row.form


def _scores(bench: Bench, found: np.ndarray) -> np.ndarray:
    return bench.task.score(found, judged(bench, "validation", len(found)).targets)


def _screened(bench: Bench) -> int | None:
    """How many examples screening takes; None where that would be all of them anyway."""
    return SCREENED if len(bench.task.splits["validation"]) > SCREENED else None


def score_fully(bench: Bench, row: Row) -> None:
    """Score a screened row on the whole validation split."""
    try:
        row.scores = _scores(bench, outputs(row.home(bench), row.option, _form(row), "validation"))
    except EngineFailed as error:
        row.trouble = f"the engine failed: {error.what}"


def _explained(bench: Bench, row: Row) -> Parity:
    """A failed parity with the first layer that departs, where the form still knows its layers."""
    parity = row.parity
    assert parity is not None
    try:
        expected = _layers(bench, ORIGINAL, original_form(bench))
        found = _layers(bench, row.option, _form(row))
    except (EngineFailed, OSError):
        return parity
    departed = first_departure(expected, found, parity.tolerance) or first_departure(expected, found, parity.tolerance / 5)
    return Parity(parity.error, parity.tolerance, *departed) if departed else parity


def _layers(bench: Bench, option: Option, form: Path) -> dict[str, np.ndarray]:
    """Layer values on eight validation examples, from a process of their own."""
    import numpy as np

    batch = bench.task.collate(list(bench.task.splits["validation"].inputs[:8]), "longest")
    with tempfile.TemporaryDirectory(prefix="lissome-") as folder, Process(bench.threads) as process:
        process.load(option.engine, form, option.precision, write_batches([batch], Path(folder) / "batch.npz"), None, probes=True)
        names = process.ask("layers", to=f"{folder}/layers.npz")["names"]
        with np.load(f"{folder}/layers.npz", allow_pickle=False) as file:
            return {name: file[str(i)] for i, name in enumerate(names)}


def measure_rows(bench: Bench, rows: Sequence[Row], original: Row, rounds: int = ROUNDS) -> None:
    """Time all rows that work so far against the original."""
    waiting = [row for row in rows if row.trouble is None and row is not original]
    if not waiting and original.result is not None:
        return
    first, *pairs = side_by_side(bench, [original, *waiting], rounds)
    original.noise = pairs[-1].noise if pairs else first.noise
    original.result = original.original = original.result or first.own
    for row, pair in zip(waiting, pairs, strict=True):
        if pair.own.failed:
            row.trouble = pair.own.failed if pair.own.crowded else f"the engine failed: {pair.own.failed}"
        else:
            _gate_as_deployed(row, pair.own)
            row.result, row.original = pair.own, pair.first


def _gate_as_deployed(row: Row, result: Result) -> None:
    """The parity gate once more, at the contract's own batch size and padding: engines take other kernels for other shapes, and some are wrong."""
    gate = Parity(result.departure if result.departure is not None else float("inf"), TOLERANCE[row.option.precision])
    if row.parity is None or not gate.error <= row.parity.error:
        row.parity = gate
    if not gate.ok:
        row.trouble = f"{gate.sentence()} (as deployed, not in large batches)"


def subject(bench: Bench, row: Row, *, final: bool = False) -> Subject:
    """A row as a subject of measurement. final: on other and more examples than those the choice was made with."""
    option = row.option
    batches = timing_batches(bench.task, bench.contract.batch, option.padding, bench.seed + final, calls=2 if final else 1)
    expected = None if row.variant is None else computed(twin(row.variant.bench), batches)
    return Subject(option.name, option.engine, option.precision, _form(row), batches, row.size, bench.shapes(option), expected)


def computed(module: nn.Module, batches: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """What a module in memory computes on batches, one after another [n, ...], in float32."""
    import numpy as np
    import torch

    from lissome.nn.call import call

    with torch.inference_mode():
        found = [call(module, {name: torch.from_numpy(array) for name, array in batch.items()}).float().numpy() for batch in batches]
    return np.concatenate(found)


def free_ram(bench: Bench) -> float | None:
    """MB that measured processes may take together under --ram, lissome's own share subtracted; None without a bound."""
    if bench.contract.ram_mb is None:
        return None
    return max(0.0, bench.contract.ram_mb - current_rss(bench.machine.fingerprint).value)


class Pair(NamedTuple):
    """What a row gave, what the first row gave in the same run, and how noisy that run was."""

    first: Result
    own: Result
    noise: str


def side_by_side(bench: Bench, rows: Sequence[Row], rounds: int = ROUNDS) -> list[Pair]:
    """What each row gives beside the first, which the others are held against: one interleaved run, or more where --ram does not hold all at once.

    A row that does not fit even alone with the first has failed. Raises EngineFailed when the first fails.
    """
    found: dict[int, Pair] = {}
    waiting = list(range(1, len(rows)))
    while waiting or not found:
        (first, *others), noise = timed(bench, [rows[0], *(rows[at] for at in waiting)], rounds)
        if first.failed:
            raise EngineFailed(f"the model could not be timed: {first.failed}")
        found.setdefault(0, Pair(first, first, noise))
        pairs = {at: Pair(first, own, noise) for at, own in zip(waiting, others, strict=True)}
        fit = {at: pair for at, pair in pairs.items() if not pair.own.crowded}
        found |= fit or pairs
        waiting = [at for at in waiting if at not in found]
    return [found[at] for at in range(len(rows))]


def timed(bench: Bench, rows: Sequence[Row], rounds: int = ROUNDS) -> tuple[list[Result], str]:
    """All rows in one interleaved run, and how noisy it was. Kept in the cache, by what the forms hold."""
    return kept_run(bench, rows, [subject(bench, row) for row in rows], rounds, "run-4")


def kept_run(
    bench: Bench, rows: Sequence[Row], subjects: Sequence[Subject], rounds: int, kind: str, since: float = 0.0, repeat: int = 0
) -> tuple[list[Result], str]:
    """The rows' subjects in one interleaved run, from the cache where it holds this repeat of such a run of after `since` (seconds since the epoch)."""
    ways = [(_form(row).name, row.option.engine, row.option.precision, row.option.padding) for row in rows]  # a form's folder is named by its content
    here = (bench.machine.fingerprint, versions(), bench.threads, bench.contract.ram)
    key = digest(kind, ways, here, bench.task.fingerprint, bench.contract.batch, rounds, bench.seed, *([repeat] if repeat else []))
    stored: dict[str, Any] | None = bench.cache.get("timings", key)
    if stored is None or stored.get("at", 0.0) < since:
        run = measure(subjects, bench.machine.fingerprint, rounds=rounds, threads=bench.threads, ram_mb=free_ram(bench), progress=bench.progress)
        stored = {"at": time.time(), "noise": run.noise.sentence, "results": [plain(result) for result in run.results]}
        if not any(result.failed and not result.crowded for result in run.results):  # what failed once may work the next time
            bench.cache.put("timings", key, stored)
    return [Result(one, **kept) for one, kept in zip(subjects, stored["results"], strict=True)], stored["noise"]


def plain(result: Result) -> dict[str, Any]:
    """What a result holds beside its subject, as JSON."""
    kept = ("rounds", "calls", "cold_start_s", "memory_mb", "energy_mj", "departure", "failed", "crowded")
    return {name: getattr(result, name) for name in kept}
