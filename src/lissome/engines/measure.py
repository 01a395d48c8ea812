"""Measure forms against each other: each in a process of its own, all in one interleaved run on the same real inputs.

A round gives every subject one slice, in rotating order, so that a slow spell of the machine hits all alike. Each slice is whole passes through
the same examples. Its p50 is one value; the interval is over rounds (order statistics), so that it holds whatever the distribution of single calls.
The p95 is that of all calls together, its interval a bootstrap over rounds, because slow calls come in spells.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lissome.core.errors import BadInput
from lissome.core.measurement import Measurement, counted
from lissome.core.progress import Progress, Silent
from lissome.core.statistics import achieved_confidence, median_interval, ratio_interval
from lissome.engines.process import EngineFailed, Process, write_batches
from lissome.export.parity import relative_error
from lissome.machine.energy import EnergyMeter, find_meter
from lissome.machine.noise import Noise, NoiseMeter

if TYPE_CHECKING:
    import numpy as np

    Batches = Sequence[Mapping[str, np.ndarray]]

FIGURES = ("latency_p50", "latency_p95", "throughput", "memory", "cold_start", "energy", "size")
SLICE_S = 0.06
FINE_J = 0.01
"""Energy is read per slice where the counter's step is at most this; a battery's is far too coarse for that."""
P95_CALLS = 200
"""Calls below which no p95 is claimed: ten in the slowest twentieth."""
RESAMPLES = 400
SKIP = 3
"""Unrecorded calls at the start of a slice: they bring the caches back from what ran before."""


@dataclass(frozen=True)
class Subject:
    """One form to measure. shapes: fixed input shapes, or None. batches: what every call sees, in order. size: bytes on disk.

    expected: what it should compute on them, one after another; by default what the first subject of the run computes.
    """

    name: str
    engine: str
    precision: str
    form: Path
    batches: Batches
    size: int
    shapes: Mapping[str, Sequence[int]] | None = None
    expected: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass
class Result:
    """What a measured subject gave. rounds: one p50 and one throughput a round; calls: milliseconds of every call, by round.

    failed: the engine's reason, or None. crowded: failed only because --ram does not hold it beside the others.
    departure: relative distance of its outputs on the timed batches to what it should compute, which the parity gate judges.
    """

    subject: Subject
    rounds: dict[str, list[float]] = field(default_factory=lambda: {"latency_p50": [], "throughput": []})
    calls: list[list[float]] = field(default_factory=list)
    cold_start_s: float = 0.0
    memory_mb: float = 0.0
    energy_mj: list[float] = field(default_factory=list)
    departure: float | None = None
    failed: str | None = None
    crowded: bool = False

    def figures(self, machine: str, confidence: float = 0.95) -> tuple[Measurement, ...]:
        """latency_p50, latency_p95 (ms), throughput (examples/s), memory (MB), size (MB), cold_start (ms), as Measurements."""
        found = (self.figure(name, machine, confidence) for name in FIGURES)
        return tuple(one for one in found if one is not None)

    def figure(self, name: str, machine: str, confidence: float = 0.95) -> Measurement | None:
        """One of the figures; None for energy without a counter. Only what is asked for is computed: a p95 takes hundreds of resamples."""
        if name == "latency_p95":
            return _p95(self.calls, None, name, "ms", machine, confidence)
        if name == "size":
            return counted(name, self.subject.size / 1e6, "MB", machine)
        if name in ("memory", "cold_start"):
            one, unit = (self.memory_mb, "MB") if name == "memory" else (self.cold_start_s * 1e3, "ms")
            return Measurement(name, one, one, one, unit, 1, "measured", machine, 0.0)
        values = self.energy_mj if name == "energy" else self.rounds[name]
        unit = {"latency_p50": "ms", "throughput": "1/s", "energy": "mJ"}[name]
        return None if name == "energy" and not values else _over_rounds(name, values, unit, machine, confidence)


@dataclass(frozen=True)
class Run:
    """One interleaved run: results in the order of the subjects, and how noisy the machine was."""

    results: tuple[Result, ...]
    noise: Noise


def speedup(original: Result, candidate: Result, name: str, machine: str, confidence: float = 0.95) -> Measurement:
    """How many times smaller `name` ("latency_p50", "latency_p95") is for the candidate, from rounds of the same run."""
    if name == "latency_p95":
        return _p95(original.calls, candidate.calls, "speedup_latency_p95", "x", machine, confidence)
    before, after = original.rounds[name], candidate.rounds[name]
    value, low, high = ratio_interval(before, after, confidence)
    return Measurement(f"speedup_{name}", value, low, high, "x", len(after), "measured", machine, _reached(len(after), confidence))


def times_below(before: Measurement, after: Measurement, confidence: float) -> Measurement:
    """How many times smaller a figure became, from two intervals: the factor's own reaches from their nearest to their farthest ends."""
    low, high = before.low / after.high, before.high / after.low
    return Measurement(after.name, before.value / after.value, low, high, "x", after.n, after.method, after.machine, confidence)


def fine_meter() -> EnergyMeter | None:
    """The energy counter that a slice can be read with, or None."""
    meter = find_meter()
    return meter if meter.available() and meter.grain_j <= FINE_J else None


def _over_rounds(name: str, values: Sequence[float], unit: str, machine: str, confidence: float) -> Measurement:
    """The median over rounds; its confidence is what so many rounds reach, at most what was asked."""
    value, low, high = median_interval(values, confidence)
    return Measurement(name, value, low, high, unit, len(values), "measured", machine, _reached(len(values), confidence))


def _reached(n: int, confidence: float) -> float:
    return min(confidence, achieved_confidence(n, confidence))


def _p95(calls: Sequence[Sequence[float]], against: Sequence[Sequence[float]] | None, name: str, unit: str, machine: str, confidence: float) -> Measurement:
    """The p95 of all calls, or its ratio to that of `against`; the interval from resampling whole rounds (percentile bootstrap, seeded).

    n is the number of calls; with fewer than P95_CALLS of them, or six rounds, nothing is claimed (confidence 0).
    """
    import numpy as np

    def p95(rounds: Sequence[Sequence[float]], picks: Sequence[int]) -> float:
        return float(np.percentile(np.concatenate([rounds[i] for i in picks]), 95))

    def figure(picks: Sequence[int]) -> float:
        return p95(calls, picks) / p95(against, picks) if against else p95(calls, picks)

    rounds, n = len(calls), min(sum(map(len, rows)) for rows in (calls, against or calls))
    rng = np.random.default_rng(0)
    drawn = [figure(rng.integers(0, rounds, rounds).tolist()) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = figure(range(rounds))
    enough = n >= P95_CALLS and rounds >= 6
    return Measurement(name, value, min(float(low), value), max(float(high), value), unit, n, "measured", machine, confidence if enough else 0.0)


def measure(subjects: Sequence[Subject], machine: str, *, rounds: int = 15, threads: int, ram_mb: float | None = None, progress: Progress | None = None) -> Run:
    """Measure all subjects in one interleaved run.

    ram_mb: bound on all measured processes together; subjects that no longer fit are marked failed with that reason.
    A subject whose engine fails is marked, never raised.
    """
    progress = progress or Silent()
    results = tuple(Result(subject) for subject in subjects)
    progress.stage(f"measuring {len(subjects)} ways, interleaved", len(subjects) + rounds)
    with ExitStack() as stack, NoiseMeter() as meter:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lissome-")))
        processes: dict[int, Process] = {}
        counter = fine_meter()
        used = 0.0
        for i, result in enumerate(results):
            progress.step(note=result.subject.name)
            process = stack.enter_context(Process(threads))
            if _start(process, result, folder / f"{i}.npz", machine):
                used += result.memory_mb
                processes[i] = process
                if ram_mb is not None and used > ram_mb and len(processes) > 1:
                    result.crowded = True
                    result.failed = f"measuring it beside the others needs more than the {ram_mb:.0f} MB allowed by --ram"
                    used -= result.memory_mb
                    processes.pop(i).close()
        _depart(results, folder)
        for turn in range(rounds):
            order = list(processes)
            for i in order[turn % max(len(order), 1) :] + order[: turn % max(len(order), 1)]:
                if results[i].failed is None:
                    _slice(processes[i], results[i], counter)
            progress.step(note=f"round {turn + 1} of {rounds}")
        for i, process in processes.items():
            if results[i].failed is None:
                _weigh(process, results[i], machine)
                meter.series(results[i].rounds["latency_p50"])
    assert meter.noise is not None
    return Run(results, meter.noise)


def _start(process: Process, result: Result, batches: Path, machine: str) -> bool:
    """Load and warm one subject; False (and the reason noted) if its engine cannot."""
    subject = result.subject
    try:
        process.load(subject.engine, subject.form, subject.precision, write_batches(subject.batches, batches), subject.shapes)
        result.cold_start_s = process.cold_start_s
        process.ask("warm", to=str(batches.with_suffix(".npy")))
        result.memory_mb = process.peak_mb(machine)
    except EngineFailed as error:
        result.failed = error.what
        process.close()
    return result.failed is None


def _depart(results: Sequence[Result], folder: Path) -> None:
    """Compare the outputs of the warming pass, which all subjects ran on the same examples, with what they should be."""
    import numpy as np

    if not results or results[0].failed is not None:
        return
    first = np.load(folder / "0.npy", allow_pickle=False)
    for i, result in enumerate(results):
        if result.failed is None:
            expected = first if result.subject.expected is None else result.subject.expected
            result.departure = relative_error(expected, np.load(folder / f"{i}.npy", allow_pickle=False))


def _weigh(process: Process, result: Result, machine: str) -> None:
    """Note the peak memory, or that the process is no longer there."""
    try:
        result.memory_mb = process.peak_mb(machine)
    except BadInput as error:
        result.failed = error.what


def _slice(process: Process, result: Result, counter: EnergyMeter | None) -> None:
    """One subject's share of a round. Its energy is the whole package's over the slice, idle share included, per call."""
    try:
        before = counter.read_joules() if counter else 0.0
        ms = process.ask("time", seconds=SLICE_S, skip=SKIP)["ms"]
        if counter:
            result.energy_mj.append(1e3 * (counter.read_joules() - before) / (len(ms) + SKIP))
    except EngineFailed as error:
        result.failed = error.what
        return
    import numpy as np

    examples = next(iter(result.subject.batches[0].values())).shape[0]
    result.calls.append([round(one, 5) for one in ms])
    result.rounds["latency_p50"].append(float(np.percentile(ms, 50)))
    result.rounds["throughput"].append(1e3 * examples / float(np.mean(ms)))
