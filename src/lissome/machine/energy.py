"""Energy from counters: RAPL, a discharging battery, NVML. Where there is no counter this says so; nothing here estimates."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lissome.core.config import Config
from lissome.core.errors import EnvironmentLacks
from lissome.core.measurement import Measurement
from lissome.machine.cgroup import read_text
from lissome.machine.interleave import measured

# A window shorter than this is mostly the counter's own grain: RAPL updates each ms, NVML each 20-100 ms (zeus profiles with windows of seconds).
_WINDOW_S = 1.0
# RAPL registers of 65 kJ wrap in under three minutes at 400 W; a reading at least this often sees every wrap.
_POLL_S = 20.0


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a counter can be read, and why (not), as a sentence. True in a condition when it can."""

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok


class EnergyMeter(Protocol):
    """One counter of energy.

    name: "RAPL". covers: what the joules are the joules of. grain_j: the smallest step that the counter shows, in J.
    """

    name: str
    covers: str
    grain_j: float

    def available(self) -> Availability:
        """Whether it can be read here, with the reason."""
        ...

    def read_joules(self) -> float:
        """Joules since the meter was first read: 0.0 the first time, never less than before. Raises EnvironmentLacks where unavailable."""
        ...


class Rapl:
    """Running Average Power Limit counters in /sys/class/powercap: whole CPU packages, and DRAM where it has its own counter.

    Package counters contain cores and built-in graphics, so those sub-zones are not added; `psys` (the whole board) contains packages and is left
    out; intel-rapl-mmio is the same counter a second time. AMD's counters appear under the same names.
    """

    name = "RAPL"
    covers = "CPU packages (all processes, idle power included)"
    grain_j = 0.001

    def __init__(self, root: Path = Path("/")):
        self.root = root
        self.zones = _rapl_zones(root)
        self.last: dict[Path, int] = {}
        self.joules = 0.0
        if any((read_text(zone / "name") or "") == "dram" for zone in self.zones):
            self.covers = "CPU packages and DRAM (all processes, idle power included)"

    def available(self) -> Availability:
        """Whether every package's counter can be read."""
        if not self.zones:
            return Availability(False, "This system shows no RAPL counters (usual in virtual machines, containers and on Arm).")
        for zone in self.zones:
            try:
                _read_count(zone / "energy_uj")
            except PermissionError:
                fix = "sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj"
                return Availability(False, f"RAPL counters exist but may not be read by this user (permission denied); until the next boot: {fix}")
            except (OSError, ValueError) as error:
                return Availability(False, f"RAPL counters exist but cannot be read: {error}")
        return Availability(True, f"RAPL counters of {len(self.zones)} zone{'s' if len(self.zones) > 1 else ''}: {self.covers}.")

    def read_joules(self) -> float:
        """Joules of all zones since the first call. A counter that wrapped since the last call counts on; call at least every minute."""
        _require(self)
        for zone in self.zones:
            now, before = _read_count(zone / "energy_uj"), self.last.get(zone)
            if before is not None:
                step = now - before if now >= before else now - before + _wrap_range(zone)
                self.joules += step / 1e6
            self.last[zone] = now
        return self.joules


class Battery:
    """What a discharging battery has lost: the whole computer, display included, in steps of tens of joules or more."""

    name = "battery"
    covers = "the whole computer, display included"
    grain_j = 36.0  # energy_now usually moves in steps of 10 mWh

    def __init__(self, root: Path = Path("/")):
        supplies = sorted((root / "sys/class/power_supply").glob("*"))
        self.batteries = [s for s in supplies if read_text(s / "type") == "Battery" and read_text(s / "scope") != "Device"]
        self.first: float | None = None
        self.most = 0.0

    def available(self) -> Availability:
        """Whether a battery is discharging and tells its charge."""
        if not self.batteries:
            return Availability(False, "This system has no battery.")
        if not any(read_text(b / "status") == "Discharging" for b in self.batteries):
            return Availability(False, "The battery is not discharging, so it does not show what the computer takes; pull the plug to use it.")
        if any(_battery_joules(b) is None for b in self.batteries):
            return Availability(False, "The battery does not tell its charge.")
        return Availability(True, f"Battery charge: {self.covers}, in steps of about {self.grain_j:g} J, so only minutes of work can be measured.")

    def read_joules(self) -> float:
        """Joules taken from all batteries since the first call."""
        _require(self)
        now = sum(_battery_joules(b) or 0.0 for b in self.batteries)
        self.first = now if self.first is None else self.first
        self.most = max(self.most, self.first - now)
        return self.most


class Nvml:
    """NVIDIA's energy counter (Volta and later), summed over the GPUs, through nvidia-ml-py. `library` takes the place of pynvml in tests."""

    name = "NVML"
    covers = "NVIDIA GPUs (all processes, idle power included)"
    grain_j = 0.001

    def __init__(self, library: Any = None):
        self.handles: list[Any] = []
        self.first = 0.0
        try:
            self.library = library or importlib.import_module("pynvml")
        except ImportError:
            self.reason = "nvidia-ml-py is not installed."
            return
        self._open(self.library)

    def _open(self, library: Any) -> None:
        try:
            library.nvmlInit()
            handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
            self.first = sum(library.nvmlDeviceGetTotalEnergyConsumption(h) for h in handles)
        except library.NVMLError as error:
            self.reason = f"NVML cannot be used: {error}."
            return
        self.handles = handles
        self.reason = f"NVML counters of {len(handles)} GPU{'s' if len(handles) > 1 else ''}." if handles else "NVML finds no GPU."

    def available(self) -> Availability:
        """Whether a GPU's counter can be read."""
        return Availability(bool(self.handles), self.reason)

    def read_joules(self) -> float:
        """Joules of all GPUs since the meter was made."""
        _require(self)
        return float(sum(self.library.nvmlDeviceGetTotalEnergyConsumption(h) for h in self.handles) - self.first) / 1e3


class NoCounter:
    """Stands where no counter can be read: knows why, and refuses to read."""

    name = "none"
    covers = "nothing"
    grain_j = 0.0

    def __init__(self, reasons: Sequence[str]):
        self.reasons = tuple(reasons)

    def available(self) -> Availability:
        """Never, with the reasons of every counter."""
        return Availability(False, f"No energy counter can be read here, so energy is not reported. {' '.join(self.reasons)}".strip())

    def read_joules(self) -> float:
        """Raises EnvironmentLacks."""
        _require(self)
        raise AssertionError


class EnergyState(Config):
    """Which counter this machine has, for `lissome probe`. counter: "RAPL", "battery" or "none"; gpu: "NVML" or "none"."""

    counter: str
    sentence: str
    gpu: str = "none"


def find_meter(root: Path = Path("/")) -> EnergyMeter:
    """The best counter of this computer: RAPL, then the battery, else NoCounter with every reason. (GPUs are apart: `Nvml`.)"""
    candidates: list[EnergyMeter] = [Rapl(root), Battery(root)]
    return next((m for m in candidates if m.available()), NoCounter([m.available().reason for m in candidates]))


def energy_state(root: Path = Path("/")) -> EnergyState:
    """The state of the counters in words."""
    meter, gpu = find_meter(root), Nvml()
    sentence = meter.available().reason + (f" {gpu.available().reason}" if gpu.available() else "")
    return EnergyState(counter=meter.name, sentence=sentence, gpu=gpu.name if gpu.available() else "none")


def measure_energy(meter: EnergyMeter, work: Callable[[], Any], machine: str, windows: int = 7, seconds: float = _WINDOW_S) -> Measurement:
    """Energy of one call of `work`, in mJ, as Measurement "energy": the median over `windows` windows of at least `seconds` each.

    All that `meter.covers` drew during the window is charged to the calls in it; idle power is not subtracted. Windows are lengthened until
    they hold at least 50 of the counter's steps. Raises EnvironmentLacks without a counter, or when it did not move at all.
    """
    _require(meter)
    meter.read_joules()
    values = [_window(meter, work, seconds) for _ in range(windows)]
    if max(values) <= 0:
        raise EnvironmentLacks(f"the {meter.name} counter did not move during {windows} windows of {seconds:g} s", do="leave out the energy limit")
    return measured("energy", [value * 1e3 for value in values], "mJ", machine)


def _window(meter: EnergyMeter, work: Callable[[], Any], seconds: float) -> float:
    """Joules per call of one window. Stops lengthening for the counter's grain after 60 windows' worth."""
    begun, first, calls = time.perf_counter(), meter.read_joules(), 0
    look = begun + seconds
    with _Polling(meter) as polling:
        while True:
            work()
            calls += 1
            now = time.perf_counter()
            if now < look:
                continue
            look = now + seconds
            with polling.lock:
                joules = meter.read_joules() - first
            if joules >= 50 * meter.grain_j or now - begun > 60 * seconds:
                return joules / calls


class _Polling:
    """Reads the meter every 20 s from a thread while one call of the work takes long, so that no wrap goes unseen."""

    def __init__(self, meter: EnergyMeter):
        self.meter, self.lock, self.done = meter, threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._poll, daemon=True)

    def _poll(self) -> None:
        while not self.done.wait(_POLL_S):
            with self.lock:
                self.meter.read_joules()

    def __enter__(self) -> _Polling:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def _require(meter: EnergyMeter) -> None:
    state = meter.available()
    if not state:
        raise EnvironmentLacks(state.reason, do="leave out the energy limit, or run where a counter can be read; lissome never estimates energy silently")


def _rapl_zones(root: Path) -> list[Path]:
    """Zones whose sum counts nothing twice: packages, and dram zones inside them (dram has its own counter)."""
    top = root / "sys/class/powercap"
    zones = sorted(top.glob("intel-rapl:*"))
    kinds = {zone: read_text(zone / "name") or "" for zone in zones}
    packages = [z for z, kind in kinds.items() if kind.startswith("package")]
    return packages + [z for z, kind in kinds.items() if kind == "dram"]


def _wrap_range(zone: Path) -> int:
    """Microjoules at which the zone's counter starts again."""
    return int(read_text(zone / "max_energy_range_uj") or 0)


def _read_count(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _battery_joules(battery: Path) -> float | None:
    """Energy left, J: energy_now (uWh), or charge_now (uAh) times voltage_now (uV)."""
    energy, charge, volts = (read_text(battery / name) for name in ("energy_now", "charge_now", "voltage_now"))
    if energy and energy.isdigit():
        return int(energy) * 3600e-6
    if charge and volts and charge.isdigit() and volts.isdigit():
        return int(charge) * 1e-6 * int(volts) * 1e-6 * 3600
    return None
