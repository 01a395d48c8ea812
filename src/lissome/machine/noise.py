"""How noisy the machine was during a span: time stolen by the hypervisor, CPU taken by other processes, throttling, spread of repeated timings.

Linux counts in ticks of 10 ms per CPU, so shares of spans under a fifth of a second are not given (0, and the sentence says so).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lissome.core.config import Config
from lissome.machine.cgroup import read_text, throttling
from lissome.machine.identity import allowed_cpus

NoiseVerdict = Literal["quiet", "some noise", "noisy"]

# (some noise from, noisy from). Chosen, not tuned: with two busy threads on two cores, others at 20 % cost a tenth of the speed or more.
_STEAL = (0.01, 0.05)
_OTHERS = (0.05, 0.20)
_THROTTLED = (0.01, 0.05)
_SPREAD = (0.05, 0.15)
_SHORTEST_S = 0.2


class Noise(Config):
    """How noisy it was.

    steal, others, throttled: shares of the CPU time of the CPUs this process may use (0..1), taken by the hypervisor, taken by other processes, and
    of the span during which a CPU quota held this group back. spread: interquartile range over median of repeated timings (0 when none were given).
    load: 1-minute load average at the end. seconds: length of the span.
    """

    steal: float
    others: float
    spread: float
    throttled: float = 0.0
    load: float | None = None
    seconds: float = 0.0
    verdict: NoiseVerdict
    sentence: str


@dataclass(frozen=True, slots=True)
class _Reading:
    """Counters at one moment: seconds of CPU time, summed over the CPUs this process may use."""

    total: float
    idle: float
    steal: float
    own: float
    throttled: float
    clock: float


class NoiseMeter:
    """Watches a `with` block; `noise` is there afterwards. Timings of one repeated thing go in by `series`, one call per thing."""

    def __init__(self, root: Path = Path("/"), pid: int | None = None):
        self.root, self.pid = root, pid or os.getpid()
        self.spreads: list[float] = []
        self.noise: Noise | None = None

    def __enter__(self) -> NoiseMeter:
        self.begun = _read(self.root, self.pid)
        return self

    def series(self, seconds: Sequence[float]) -> None:
        """Add repeated timings of one thing; fewer than four say nothing about their spread."""
        if len(seconds) >= 4:
            self.spreads.append(spread(seconds))

    def result(self) -> Noise:
        """The noise of the block that has ended. Raises RuntimeError while it still runs."""
        if self.noise is None:
            raise RuntimeError("the noise of a block is known when the block has ended")
        return self.noise

    def __exit__(self, *_: object) -> None:
        self.noise = _difference(self.begun, _read(self.root, self.pid), self.spreads, _load(self.root))


def watch(seconds: float = 0.5, root: Path = Path("/")) -> Noise:
    """How noisy the machine is now, from doing nothing for a moment."""
    with NoiseMeter(root) as meter:
        time.sleep(seconds)
    return meter.result()


def spread(values: Sequence[float]) -> float:
    """Interquartile range over the median."""
    import numpy as np

    low, middle, high = np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75))
    return float((high - low) / middle) if middle > 0 else 0.0


def judge(steal: float, others: float, spread: float, throttled: float = 0.0, *, load: float | None = None, seconds: float = 0.0) -> Noise:
    """The verdict on given shares, and its sentence."""
    shares = ((steal, _STEAL), (others, _OTHERS), (throttled, _THROTTLED), (spread, _SPREAD))
    level = max(sum(share >= limit for limit in limits) for share, limits in shares)
    verdict: NoiseVerdict = ("quiet", "some noise", "noisy")[level]  # type: ignore[assignment]
    parts = [f"other processes took {others:.0%} of the CPU"]
    if steal >= 0.005:
        parts.append(f"the hypervisor took {steal:.0%}")
    if throttled >= 0.005:
        parts.append(f"a CPU quota held it back {throttled:.0%} of the time")
    if spread:
        parts.append(f"repeated timings spread by {spread:.0%}")
    if 0 < seconds < _SHORTEST_S:
        parts[0] = "the span was too short to see other processes"
    advice = {
        "quiet": "",
        "some noise": " Small differences may be noise.",
        "noisy": " Close other programs and measure again.",
    }
    sentence = f"{verdict.capitalize()}: {', '.join(parts)}.{advice[verdict]}"
    return Noise(steal=steal, others=others, spread=spread, throttled=throttled, load=load, seconds=round(seconds, 3), verdict=verdict, sentence=sentence)


def _difference(a: _Reading, b: _Reading, spreads: Sequence[float], load: float | None) -> Noise:
    """Shares between two readings, clipped to 0..1: the counters are read one after the other, not at one instant."""
    total, seconds = b.total - a.total, b.clock - a.clock
    middle = sorted(spreads)[len(spreads) // 2] if spreads else 0.0
    if total <= 0 or seconds < _SHORTEST_S:
        return judge(0.0, 0.0, middle, load=load, seconds=seconds)
    stolen = b.steal - a.steal
    busy = total - (b.idle - a.idle) - stolen
    others = busy - (b.own - a.own)
    shares = [min(1.0, max(0.0, round(part, 4))) for part in (stolen / total, others / total, (b.throttled - a.throttled) / seconds)]
    return judge(shares[0], shares[1], round(middle, 4), shares[2], load=load, seconds=seconds)


def _read(root: Path, pid: int) -> _Reading:
    stat = read_text(root / "proc/stat")
    if stat is None:
        return _read_elsewhere(pid)
    tick = os.sysconf("SC_CLK_TCK")
    allowed = set(allowed_cpus(root))
    rows = {int(number): [int(v) for v in values.split()] for number, values in re.findall(r"^cpu(\d+) (.*)$", stat, re.MULTILINE)}
    used = [row for number, row in rows.items() if not allowed or number in allowed]
    # user nice system idle iowait irq softirq steal; guest time is already inside user (proc(5)).
    sums = [sum(column) / tick for column in zip(*(row[:8] for row in used), strict=True)]
    stopped = throttling(root)
    own = _tree_ticks(root, pid) / tick
    return _Reading(sum(sums), sums[3] + sums[4], sums[7], own, stopped.seconds if stopped else 0.0, time.monotonic())


def _tree_ticks(root: Path, pid: int) -> int:
    """CPU ticks of a process, its living descendants, and their children that have ended and were waited for."""
    parents, ticks = {}, {}
    for folder in (root / "proc").glob("[0-9]*"):
        # Fields follow the last ")": the command's name may hold blanks and brackets. 1 = ppid, 11..14 = utime stime cutime cstime.
        fields = (read_text(folder / "stat") or "").rpartition(")")[2].split()
        if len(fields) > 14:
            parents[int(folder.name)] = int(fields[1])
            ticks[int(folder.name)] = sum(int(value) for value in fields[11:15])
    children: dict[int, list[int]] = {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)
    total, queue = 0, [pid]
    while queue:
        at = queue.pop()
        total += ticks.get(at, 0)
        queue += children.get(at, [])
    return total


def _read_elsewhere(pid: int) -> _Reading:
    """The same counters through psutil, where there is no /proc; a process that ends during the reading counts as others."""
    import psutil

    times = psutil.cpu_times()
    own = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            spent = process.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        own += spent.user + spent.system
    return _Reading(sum(times), times.idle, 0.0, own, 0.0, time.monotonic())


def _load(root: Path) -> float | None:
    text = read_text(root / "proc/loadavg")
    if text:
        return float(text.split()[0])
    return os.getloadavg()[0] if hasattr(os, "getloadavg") and root == Path("/") else None
