"""What changes to the structure save on this machine, and what they cost in accuracy: the tables that the solver adds up.

A saving is measured with the whole model on the target engine, all parts of one signature changed at once, and shared among them: what the engine fuses
and keeps in its caches is then as it will be. All variants are timed in one interleaved run.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QuantizeConfig
from lissome.compress.quantize.task import calibration
from lissome.core.cache import digest
from lissome.core.errors import LissomeError
from lissome.core.manifest import Option
from lissome.core.measurement import Measurement, Method
from lissome.core.statistics import median_interval
from lissome.engines.measure import Result
from lissome.engines.process import EngineFailed
from lissome.optimize.bench import Bench, vary
from lissome.optimize.sensitivity import Probe
from lissome.optimize.structure import Change, Structure, cut
from lissome.optimize.tables import Pair, Row, built, side_by_side

if TYPE_CHECKING:
    import torch

    from lissome.core.model import Model


@dataclass(frozen=True)
class Cost:
    """What one change saves. latency: ms a call at the contract's batch size, measured; size: MB of the form; memory: MB at its peak, measured."""

    latency: Measurement
    size: float
    memory: float

    def figures(self, machine: str) -> dict[str, Measurement]:
        """All three by their names in a manifest's plan."""
        return {"saves": self.latency, **megabytes(self.size, self.memory, machine)}


def megabytes(size: float, memory: float, machine: str, *, summed: bool = False) -> dict[str, Measurement]:
    """Savings in MB as figures of a manifest's plan. summed: of several changes together, which was not measured but added up."""
    ways: tuple[tuple[str, float, Method], ...] = (("size", size, "counted"), ("memory", memory, "measured"))
    return {name: Measurement(name, value, value, value, "MB", 1, "estimated" if summed else how, machine, 0.0) for name, value, how in ways}


def variant_row(bench: Bench, model: Model, option: Option) -> Row:
    """A changed copy of the model, built for `option` and ready to be timed; it is not scored, so its outputs are not gated here.

    For a precision by layer all layers are in int8, with the scales that are found first: they do not change the speed. Raises EngineFailed where an
    exporter refuses it.
    """
    if option.precision != "mixed":
        return exported(vary(bench, model, "").bench, option)
    made = quantize(model, QuantizeConfig(reduce_range=bench.recipe.reduce_range), calibration(bench.task, bench.seed))
    return exported(vary(bench, made.model, "", quantized=made).bench, option)


def exported(bench: Bench, option: Option) -> Row:
    """`built`, for a copy that may be more than an exporter can take: whatever it raises comes out as EngineFailed."""
    try:
        return built(bench, option)
    except LissomeError:
        raise
    except Exception as error:  # exporters raise anything
        raise EngineFailed(f"{option.name} cannot be built: {str(error).splitlines()[0][:160] if str(error) else type(error).__name__}") from error


def savings(bench: Bench, structure: Structure, option: Option, scores: Mapping[str, torch.Tensor]) -> dict[tuple[object, ...], Cost]:
    """What a change of every signature saves, each measured once and kept in the cache. A change that cannot be built or timed is left out.

    Blocks are measured by leaving half of them out, so that what stays still runs as it will.
    """
    key = bench.key(option, "savings-2", bench.task.fingerprint, bench.contract.batch, bench.threads, bench.contract.ram, bench.seed)
    stored: list[dict[str, Any]] | None = bench.cache.get("savings", key)
    groups = _by_signature(structure)
    if stored is None:
        stored = _measured(bench, structure, option, scores, list(groups.values()))
        if all(stored):  # what failed once may work the next time
            bench.cache.put("savings", key, stored)
    return {signature: Cost(Measurement(**found["latency"]), found["size"], found["memory"]) for signature, found in zip(groups, stored, strict=True) if found}


def _by_signature(structure: Structure) -> dict[tuple[object, ...], list[Change]]:
    found: dict[tuple[object, ...], list[Change]] = {}
    for change in structure.changes():
        found.setdefault(change.signature, []).append(change)
    return {signature: (changes[: max(1, len(changes) // 2)] if changes[0].block >= 0 else changes) for signature, changes in found.items()}


def _measured(
    bench: Bench, structure: Structure, option: Option, scores: Mapping[str, torch.Tensor], classes: Sequence[Sequence[Change]]
) -> list[dict[str, Any]]:
    bench.progress.stage(f"building {len(classes)} shapes of the model for {option.name}", len(classes))
    rows: list[Row | None] = []
    for changes in classes:
        bench.check_spend("the shapes of the model were built")
        rows.append(_built(bench, structure, option, scores, changes))
        bench.progress.step(note=f"{changes[0].group}: {changes[0].name}")
    bench.check_spend("the table of what can shrink was timed")
    base = variant_row(bench, structure.model, option)
    pairs = iter(side_by_side(bench, [base, *(row for row in rows if row is not None)])[1:])
    return [{} if row is None else _saved(bench, base, row, next(pairs), len(changes)) for row, changes in zip(rows, classes, strict=True)]


def _built(bench: Bench, structure: Structure, option: Option, scores: Mapping[str, torch.Tensor], changes: Sequence[Change]) -> Row | None:
    try:
        return variant_row(bench, cut(structure, changes, scores), option)
    except EngineFailed as error:
        bench.progress.say(f"{changes[0].group}, {changes[0].name} is not offered: {error.what}")
        return None


def _saved(bench: Bench, base: Row, row: Row, pair: Pair, count: int) -> dict[str, Any]:
    """Saving per change, round by round."""
    if pair.own.failed:
        return {}
    each = [(before - after) / count for before, after in zip(pair.first.rounds["latency_p50"], pair.own.rounds["latency_p50"], strict=True)]
    value, low, high = median_interval(each, bench.contract.level)
    latency = {"name": "saves", "value": value, "low": low, "high": high, "unit": "ms", "n": len(each), "method": "measured"}
    memory = (pair.first.memory_mb - pair.own.memory_mb) / count
    return {"latency": {**latency, "machine": bench.machine.fingerprint}, "size": (base.size - row.size) / 1e6 / count, "memory": memory}


def losses(bench: Bench, structure: Structure, probe: Probe, scores: Mapping[str, torch.Tensor]) -> dict[Change, float]:
    """How far each single change moves the outputs, before any training; infinite for one that breaks the model. Kept in the cache."""
    changes = structure.changes()
    key = digest("losses-1", bench.model.fingerprint, bench.task.fingerprint, bench.seed, [(c.group, c.keep, c.block) for c in changes])
    stored: list[float] | None = bench.cache.get("losses", key)
    if stored is None:
        bench.progress.stage(f"what each of {len(changes)} changes costs", len(changes))
        stored = []
        for change in changes:
            bench.check_spend("what each change costs was found")
            stored.append(probe.loss(cut(structure, [change], scores).module))
            bench.progress.step(note=f"{change.group}: {change.name}")
        bench.cache.put("losses", key, stored)
    return dict(zip(changes, stored, strict=True))


def typical(results: Result) -> float:
    """Median latency of a call, ms."""
    return statistics.median(results.rounds["latency_p50"])
