"""Precision by layer: when int8 is fast enough but costs too much accuracy, better scales, float where it matters, then training with the rounding in place.

A plan takes int8 or float for every set of layers that share their input; what each set's rounding does to the outputs is simulated, what sparing it
costs in time is measured with the whole model on the target engine, and the exact front over all sets is solved.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QatTaskConfig, QuantizeConfig
from lissome.compress.quantize.simulate import simulate
from lissome.compress.quantize.store import load_quantized, save_quantized
from lissome.compress.quantize.task import calibration, qat_for_task
from lissome.core.cache import digest
from lissome.core.manifest import Option, PartChoice, PartOption
from lissome.core.measurement import Measurement
from lissome.core.quantization import Quantization, Quantized, Scales
from lissome.core.statistics import median_interval
from lissome.engines.measure import Result
from lissome.nn.call import call
from lissome.optimize.additive import Choice, Point, front
from lissome.optimize.bench import Bench, Variant, vary
from lissome.optimize.costs import Cost, exported
from lissome.optimize.options import ORIGINAL
from lissome.optimize.sensitivity import HARDEST, Probe
from lissome.optimize.tables import Pair, Row, built, side_by_side
from lissome.train.config import TrainConfig
from lissome.train.finetune import early_key
from lissome.train.loop import LATE, TrainResult

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lissome.core.model import Model

METHODS = (
    QuantizeConfig(method="minmax", bias_correction=False),
    QuantizeConfig(method="mse"),
    QuantizeConfig(method="percentile"),
    QuantizeConfig(method="mse", smooth=0.5),
)
"""Ways to find scales, by how much work they are."""
LEFT = (0.5, 0.2, 0.05)
"""Shares of the loss of full int8 that plans are built for: the first that is accurate enough is the fastest that is."""
QAT_EPOCHS = 1.0


@dataclass(frozen=True)
class Shared:
    """Layers that read one tensor and are quantised together, so that it is rounded once. signature: sets that cost the same time."""

    layers: tuple[str, ...]
    signature: tuple[object, ...]

    @property
    def name(self) -> str:
        """The layers, shortened: "encoder.0.attention.self.query + 2"."""
        return self.layers[0] + (f" + {len(self.layers) - 1}" if len(self.layers) > 1 else "")


def best_scales(bench: Bench, probe: Probe) -> tuple[Quantized, str]:
    """The model in static int8, with the scales whose simulated outputs are nearest to the original's on the hardest examples; kept in the cache."""
    methods = [config.model_copy(update={"reduce_range": bench.recipe.reduce_range}) for config in METHODS]
    key = digest("scales-1", bench.model.fingerprint, probe.fingerprint, bench.task.fingerprint, bench.seed, [config.model_dump() for config in methods])
    words = "words.txt"

    def make(empty: Path) -> None:
        data = calibration(bench.task, bench.seed)
        found: list[tuple[float, str, Quantized]] = []
        bench.progress.stage(f"scales by {len(methods)} methods", len(methods))
        for config in methods:
            bench.check_spend("the scales were found")
            made = quantize(bench.model, config, data)
            name = config.method + (", smoothed" if config.smooth else "")
            found.append((probe.loss(simulate(made.model.module, made.quantization, made.scales).eval()), name, made))
            bench.progress.step(note=f"{name}: {found[-1][0]:.3g} nats")
        loss, name, made = min(found, key=lambda one: one[0])
        others = ", ".join(f"{other} {value:.2g}" for value, other, _ in found if other != name)
        save_quantized(made, empty)
        (empty / words).write_text(f"int8 scales by {name}: {loss:.2g} nats from the original on the hardest examples ({others})", encoding="utf-8")

    folder = bench.cache.folder("scales", key, make)
    return load_quantized(folder), (folder / words).read_text(encoding="utf-8")


def varied(bench: Bench, quantized: Quantized, change: str, parts: tuple[PartChoice, ...], steps: Sequence[str]) -> Variant:
    """A quantised model as a variant."""
    return vary(bench, quantized.model, change, parts, tuple(steps), quantized)


def shared_layers(module: nn.Module, quantization: Quantization, batch: Mapping[str, Any]) -> list[Shared]:
    """The quantised layers, those that read the same tensor together, in the order they run."""
    import torch

    seen: dict[int, list[str]] = {}
    shapes: dict[str, tuple[object, ...]] = {}
    kept: list[torch.Tensor] = []  # held, so that no other tensor gets the same address meanwhile

    def note(name: str, given: torch.Tensor) -> None:
        kept.append(given)
        seen.setdefault(id(given), []).append(name)
        weight: Any = module.get_submodule(name).weight
        shapes[name] = (tuple(weight.shape), tuple(given.shape[1:]))

    handles = [module.get_submodule(name).register_forward_pre_hook(lambda _m, given, name=name: note(name, given[0])) for name in quantization.layers]
    try:
        with torch.no_grad():
            call(module, {name: torch.as_tensor(value) for name, value in batch.items()})
    finally:
        for handle in handles:
            handle.remove()
    return [Shared(tuple(names), tuple(shapes[name] for name in names)) for names in seen.values()]


def spared(quantized: Quantized, layers: Sequence[str]) -> Quantized:
    """The same with `layers` left in float."""
    kept = {name: quant for name, quant in quantized.quantization.layers.items() if name not in layers}
    norms = {name: norm for name, norm in quantized.quantization.norms.items() if name in kept}
    scales = Scales({name: found for name, found in quantized.scales.layers.items() if name in kept})
    return Quantized(quantized.model, Quantization(layers=kept, norms=norms), scales, quantized.notes)


@dataclass(frozen=True)
class Table:
    """For every set of layers: how far its rounding alone moves the outputs, and what int8 saves there.

    whole, original: the model with every set in int8, and the original, from one interleaved run.
    """

    sets: tuple[Shared, ...]
    loss: tuple[float, ...]
    saves: tuple[Cost, ...]
    whole: Result
    original: Result


def table(bench: Bench, quantized: Quantized, option: Option, probe: Probe) -> Table:
    """The sensitivity table of a quantised model for one engine."""
    sets = shared_layers(quantized.model.module, quantized.quantization, bench.recipe.example)
    losses = _losses(bench, quantized, sets, probe)
    classes: dict[tuple[object, ...], list[Shared]] = {}
    for one in sets:
        classes.setdefault(one.signature, []).append(one)
    rows = [_row(bench, quantized, option)]
    bench.progress.stage(f"building {len(classes)} precisions for {option.engine}", len(classes))
    for members in classes.values():
        bench.check_spend("the precisions were built")
        rows.append(_row(bench, spared(quantized, [name for one in members for name in one.layers]), option))
        bench.progress.step(note=members[0].name)
    bench.check_spend("the table of precisions was timed")
    pairs = side_by_side(bench, [rows[0], built(bench, ORIGINAL), *rows[1:]])
    saves = {
        signature: _saved(bench, pair, (row.size - rows[0].size) / 1e6, len(classes[signature]))
        for signature, pair, row in zip(classes, pairs[2:], rows[1:], strict=True)
    }
    return Table(tuple(sets), tuple(losses), tuple(saves[one.signature] for one in sets), pairs[0].own, pairs[1].own)


def _losses(bench: Bench, quantized: Quantized, sets: Sequence[Shared], probe: Probe) -> list[float]:
    """How far rounding one set alone moves the outputs, set by set; kept in the cache."""
    key = digest("rounding-1", quantized.fingerprint, probe.fingerprint, [one.layers for one in sets])
    stored: list[float] | None = bench.cache.get("losses", key)
    if stored is not None:
        return stored
    everything = [name for one in sets for name in one.layers]
    bench.progress.stage(f"what rounding each of {len(sets)} sets of layers costs", len(sets))
    stored = []
    for one in sets:
        bench.check_spend("what rounding costs was found")
        alone = spared(quantized, [name for name in everything if name not in one.layers])
        stored.append(probe.loss(simulate(alone.model.module, alone.quantization, alone.scales).eval()))
        bench.progress.step(note=one.name)
    bench.cache.put("losses", key, stored)
    return stored


def plans(found: Table, room: float | None) -> list[Point]:
    """Points of the exact front, the fastest first: for each share of LEFT the fastest plan whose loss is below it, among those within `room` ms."""
    groups = [[Choice("int8", loss, (0.0,)), Choice("float", 0.0, (saved.latency.value,))] for loss, saved in zip(found.loss, found.saves, strict=True)]
    points = [point for point in front(groups) if room is None or point.costs[0] <= room]
    whole = sum(found.loss)
    picked: list[Point] = []
    for share in LEFT:
        point = next((point for point in points if point.loss <= share * whole), points[-1] if points else None)
        if point is not None and point not in picked and any(point.picks):
            picked.append(point)
    return picked


def planned(bench: Bench, quantized: Quantized, found: Table, point: Point, steps: Sequence[str]) -> Variant:
    """The variant that a point of the front stands for."""
    left = [one for one, pick in zip(found.sets, point.picks, strict=True) if pick]
    layers = [name for one in left for name in one.layers]
    change = f"{len(layers)} of {len(quantized.quantization.layers)} layers in float, {point.loss:.2g} nats left"
    step = f"left {', '.join(one.name for one in left)} in float: {point.loss:.2g} of {sum(found.loss):.2g} nats remain for {point.costs[0]:+.2g} ms a call"
    return varied(bench, spared(quantized, layers), change, _parts(bench, found, point), (*steps, step))


def trained(bench: Bench, quantized: Quantized, teacher: Model) -> tuple[Quantized, str, str]:
    """The quantised model after an epoch with its rounding in place, taught by `teacher` as well as by the labels, and that as a change and as a step.

    Kept in the cache; what --spend cut short is trained on by the next contract. Raises OutOfTime where it was over before a step.
    """
    config, begun = qat_lesson(bench), time.perf_counter()
    key = digest("qat-2", quantized.fingerprint, bench.model.fingerprint, teacher.fingerprint, bench.task.fingerprint, config.model_dump())

    results: list[TrainResult] = []

    def make(empty: Path) -> str | None:
        given: dict[str, Any] = {"teacher": teacher, "done": results.append, "deadline": bench.deadline}
        save_quantized(qat_for_task(bench.model, quantized, bench.task, config, bench.cache, bench.progress, **given), empty)
        return early_key(key, results[0])

    made = load_quantized(bench.cache.folder("qat", key, make))
    took = f"{time.perf_counter() - begun:.0f} s"
    if results and results[0].stopped == LATE:
        far = f"{QAT_EPOCHS * results[0].steps / results[0].total:.3g} of {QAT_EPOCHS:g} epochs"
        return made, f"trained in int8 for {far}", f"trained with int8 in place, stopped by --spend after {far}, {took}"
    return made, "trained in int8", f"trained for {QAT_EPOCHS:g} epoch with int8 in place, {took}"


def qat_lesson(bench: Bench) -> QatTaskConfig:
    """How a quantised model is trained."""
    return QatTaskConfig(train=TrainConfig(epochs=QAT_EPOCHS, lr=2e-5, seed=bench.seed))


def _row(bench: Bench, quantized: Quantized, option: Option) -> Row:
    return exported(varied(bench, quantized, "", (), ()).bench, option)


def _saved(bench: Bench, pair: Pair, smaller: float, count: int) -> Cost:
    """What int8 saves in each of `count` sets that were left in float together, from rounds side by side. smaller: MB of files for all of them.

    A set that cannot be left in float saves more than anything can cost.
    """
    machine = bench.machine.fingerprint
    if pair.own.failed:
        never = 1e6
        return Cost(Measurement("saves", never, never, never, "ms", 0, "estimated", machine, 0.0), smaller / count, 0.0)
    each = [(after - before) / count for before, after in zip(pair.first.rounds["latency_p50"], pair.own.rounds["latency_p50"], strict=True)]
    value, low, high = median_interval(each, bench.contract.level)
    latency = Measurement("saves", value, low, high, "ms", len(each), "measured", machine, bench.contract.level)
    return Cost(latency, smaller / count, (pair.own.memory_mb - pair.first.memory_mb) / count)


def _parts(bench: Bench, found: Table, point: Point) -> tuple[PartChoice, ...]:
    machine, parts = bench.machine.fingerprint, []
    for one, loss, saved, pick in zip(found.sets, found.loss, found.saves, point.picks, strict=True):
        harm = Measurement("divergence", loss, loss, loss, "nats", HARDEST, "measured", machine, 0.0)
        none = Measurement("divergence", 0.0, 0.0, 0.0, "nats", HARDEST, "measured", machine, 0.0)
        zero = Measurement("saves", 0.0, 0.0, 0.0, "ms", saved.latency.n, "measured", machine, saved.latency.confidence)
        int8 = PartOption(name="int8", loss=harm, **saved.figures(machine))
        options = (PartOption(name="float", loss=none, saves=zero), int8)
        parts.append(PartChoice(part=one.name, chosen="float" if pick else "int8", options=options))
    return tuple(parts)
