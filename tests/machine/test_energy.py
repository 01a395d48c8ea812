from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import EnvironmentLacks
from lissome.machine.energy import Battery, NoCounter, Nvml, Rapl, energy_state, find_meter, measure_energy

CAP = "sys/class/powercap"
WRAP = 262_143_328_850


def zone(name: str, kind: str, uj: int) -> dict[str, str]:
    return {f"{CAP}/{name}/name": f"{kind}\n", f"{CAP}/{name}/energy_uj": f"{uj}\n", f"{CAP}/{name}/max_energy_range_uj": f"{WRAP}\n"}


def set_energy(tree, name: str, uj: int) -> None:
    tree({f"{CAP}/{name}/energy_uj": f"{uj}\n"})


BOX = {
    **zone("intel-rapl:0", "package-0", 1_000_000),
    **zone("intel-rapl:0:0", "core", 400_000),
    **zone("intel-rapl:0:1", "dram", 100_000),
    **zone("intel-rapl:1", "package-1", 2_000_000),
    **zone("intel-rapl:2", "psys", 9_000_000),
    **zone("intel-rapl-mmio:0", "package-0", 1_000_000),
}


def test_packages_and_dram_are_added_and_nothing_twice(tree):
    root = tree(BOX)
    meter = Rapl(root)
    assert meter.available().ok
    assert "DRAM" in meter.covers
    assert meter.read_joules() == 0.0
    for name, uj in (
        ("intel-rapl:0", 4_000_000),
        ("intel-rapl:0:0", 3_000_000),
        ("intel-rapl:0:1", 600_000),
        ("intel-rapl:1", 2_500_000),
        ("intel-rapl:2", 20_000_000),
    ):
        set_energy(tree, name, uj)
    assert meter.read_joules() == pytest.approx(3.0 + 0.5 + 0.5)


def test_a_counter_that_wraps_counts_on(tree):
    root = tree(zone("intel-rapl:0", "package-0", WRAP - 1_000_000))
    meter = Rapl(root)
    meter.read_joules()
    set_energy(tree, "intel-rapl:0", 2_000_000)
    assert meter.read_joules() == pytest.approx(3.0)
    set_energy(tree, "intel-rapl:0", 2_500_000)
    assert meter.read_joules() == pytest.approx(3.5)


@given(st.integers(0, WRAP - 1), st.lists(st.integers(0, WRAP - 1), max_size=12))
def test_any_steps_below_one_range_add_up(tmp_path_factory, start, steps):
    root = tmp_path_factory.mktemp("rapl")
    folder = root / CAP / "intel-rapl:0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("package-0")
    (folder / "max_energy_range_uj").write_text(str(WRAP))
    (folder / "energy_uj").write_text(str(start))
    meter = Rapl(root)
    meter.read_joules()
    total = 0
    for step in steps:
        total += step
        (folder / "energy_uj").write_text(str((start + total) % WRAP))
        assert meter.read_joules() == pytest.approx(total / 1e6)


def test_permission_denied_says_so_and_how_to_allow_it(tree, monkeypatch):
    root = tree(zone("intel-rapl:0", "package-0", 5))
    if os.geteuid() == 0:  # root may read everything, so the refusal has to be made up

        def denied(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("lissome.machine.energy._read_count", denied)
    else:
        (root / CAP / "intel-rapl:0/energy_uj").chmod(0)
    state = Rapl(root).available()
    assert not state
    assert "permission denied" in state.reason
    assert "sudo chmod a+r" in state.reason
    with pytest.raises(EnvironmentLacks, match="permission denied"):
        Rapl(root).read_joules()
    assert find_meter(root).name == "none"
    assert "permission denied" in energy_state(root).sentence


def test_a_broken_counter_is_not_available(tree):
    state = Rapl(tree(zone("intel-rapl:0", "package-0", 5) | {f"{CAP}/intel-rapl:0/energy_uj": "odd"})).available()
    assert not state
    assert "cannot be read" in state.reason


def test_no_counter_says_so_and_refuses_to_guess(tmp_path):
    meter = find_meter(tmp_path)
    assert isinstance(meter, NoCounter)
    reason = meter.available().reason
    assert "No energy counter can be read here, so energy is not reported." in reason
    assert "RAPL" in reason
    assert "no battery" in reason
    with pytest.raises(EnvironmentLacks, match="No energy counter") as error:
        meter.read_joules()
    assert error.value.exit_code == 4
    with pytest.raises(EnvironmentLacks):
        measure_energy(meter, lambda: None, "here")
    assert energy_state(tmp_path).counter == "none"


BATTERY = "sys/class/power_supply/BAT0"


def battery(status: str, **files: int) -> dict[str, str]:
    return {f"{BATTERY}/type": "Battery\n", f"{BATTERY}/status": f"{status}\n"} | {f"{BATTERY}/{k}": f"{v}\n" for k, v in files.items()}


def test_a_discharging_battery_counts_in_watt_hours(tree):
    root = tree(battery("Discharging", energy_now=50_000_000) | {"sys/class/power_supply/AC/type": "Mains\n"})
    meter = find_meter(root)
    assert meter.name == "battery"
    assert "whole computer" in meter.available().reason
    meter.read_joules()
    tree({f"{BATTERY}/energy_now": "49990000\n"})
    assert meter.read_joules() == pytest.approx(36.0)
    tree({f"{BATTERY}/energy_now": "49995000\n"})
    assert meter.read_joules() == pytest.approx(36.0)  # never less than before


def test_a_battery_that_counts_charge_is_turned_into_energy_by_its_voltage(tree):
    meter = Battery(tree(battery("Discharging", charge_now=4_000_000, voltage_now=12_000_000)))
    meter.read_joules()
    tree({f"{BATTERY}/charge_now": "3999000\n"})
    assert meter.read_joules() == pytest.approx(0.001 * 12 * 3600)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (battery("Charging", energy_now=5), "not discharging"),
        (battery("Full", energy_now=5), "not discharging"),
        (battery("Discharging"), "does not tell its charge"),
        (battery("Discharging", energy_now=5) | {f"{BATTERY}/scope": "Device\n"}, "no battery"),
    ],
)
def test_batteries_that_say_nothing(tree, files, text):
    state = Battery(tree(files)).available()
    assert not state
    assert text in state.reason


class FakeNvml:
    """Two GPUs, or an error."""

    class NVMLError(Exception):
        pass

    def __init__(self, millijoules=(), error=""):
        self.millijoules, self.error = list(millijoules), error

    def nvmlInit(self):
        if self.error:
            raise self.NVMLError(self.error)

    def nvmlDeviceGetCount(self):
        return len(self.millijoules)

    def nvmlDeviceGetHandleByIndex(self, i):
        return i

    def nvmlDeviceGetTotalEnergyConsumption(self, i):
        return self.millijoules[i]


def test_nvml_sums_the_gpus_from_when_it_was_made():
    library = FakeNvml([1_000, 5_000])
    meter = Nvml(library)
    assert meter.available().reason == "NVML counters of 2 GPUs."
    library.millijoules = [1_500, 7_000]
    assert meter.read_joules() == pytest.approx(2.5)


@pytest.mark.parametrize(("library", "text"), [(FakeNvml(error="Driver Not Loaded"), "Driver Not Loaded"), (FakeNvml(), "finds no GPU")])
def test_nvml_without_a_gpu_says_why(library, text):
    meter = Nvml(library)
    assert not meter.available()
    assert text in meter.available().reason
    with pytest.raises(EnvironmentLacks):
        meter.read_joules()


class Constant:
    """A counter of 10 W."""

    name, covers, grain_j = "constant", "nothing", 0.0001

    def available(self):
        from lissome.machine.energy import Availability

        return Availability(True, "")

    def read_joules(self):
        return 10.0 * time.perf_counter()


def test_energy_of_a_call_is_power_times_time_in_millijoules():
    times = []

    def work():
        begun = time.perf_counter()
        time.sleep(0.002)
        times.append(time.perf_counter() - begun)

    energy = measure_energy(Constant(), work, "here", windows=7, seconds=0.03)
    assert (energy.name, energy.unit, energy.method, energy.n, energy.machine) == ("energy", "mJ", "measured", 7, "here")
    assert energy.low <= energy.value <= energy.high
    # All time within a window is charged to its calls: at least the calls' own.
    assert energy.value >= 10_000 * min(times)


def test_a_counter_that_does_not_move_is_an_error_not_zero(tree):
    meter = Rapl(tree(zone("intel-rapl:0", "package-0", 5)))
    with pytest.raises(EnvironmentLacks, match="did not move"):
        measure_energy(meter, lambda: time.sleep(0.0005), "here", windows=2, seconds=0.002)
