from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.machine import noise as noise_module
from lissome.machine.noise import Noise, NoiseMeter, judge, spread, watch

TICK = os.sysconf("SC_CLK_TCK")


def cpu(number: int, user: float, idle: float, steal: float = 0.0, iowait: float = 0.0) -> str:
    ticks = [user, 0, 0, idle, iowait, 0, 0, steal, 0, 0]
    return f"cpu{number} " + " ".join(str(round(t * TICK)) for t in ticks)


def process(pid: int, parent: int, seconds: float, waited: float = 0.0, name: str = "python") -> dict[str, str]:
    """/proc/PID/stat with `seconds` of own time and `waited` of children that have ended."""
    fields = ["S", str(parent), *["0"] * 9, str(round(seconds * TICK)), "0", str(round(waited * TICK)), "0", *["0"] * 10]
    return {f"proc/{pid}/stat": f"{pid} ({name}) {' '.join(fields)}\n"}


@pytest.fixture
def clock(monkeypatch):
    """Time stands still unless a test moves it."""
    now = [100.0]
    monkeypatch.setattr(noise_module.time, "monotonic", lambda: now[0])
    return now


def span(tree, clock, before, after, seconds=10.0, timings=()) -> Noise:
    with NoiseMeter(tree(before), pid=50) as meter:
        for series in timings:
            meter.series(series)
        clock[0] += seconds
        tree(after)
    return meter.result()


def test_own_work_and_that_of_the_process_tree_is_no_noise(tree, clock):
    before = {"proc/stat": "\n".join([cpu(0, 0, 0), cpu(1, 0, 0)])} | process(50, 1, 0) | process(51, 50, 0, name="a) b (c") | process(60, 1, 0)
    after = {"proc/stat": "\n".join([cpu(0, 10, 0), cpu(1, 5, 5)])} | process(50, 1, 6, waited=1) | process(51, 50, 8, name="a) b (c") | process(60, 1, 0)
    found = span(tree, clock, before, after)
    assert (found.others, found.steal, found.verdict) == (0.0, 0.0, "quiet")


def test_other_processes_count(tree, clock):
    before = {"proc/stat": "\n".join([cpu(0, 0, 0), cpu(1, 0, 0)])} | process(50, 1, 0) | process(60, 1, 0)
    after = {"proc/stat": "\n".join([cpu(0, 10, 0), cpu(1, 2, 8)])} | process(50, 1, 10) | process(60, 1, 2)
    found = span(tree, clock, before, after)
    assert found.others == pytest.approx(0.1)
    assert found.verdict == "some noise"
    assert "other processes took 10% of the CPU" in found.sentence


def test_cpus_that_this_process_may_not_use_do_not_count(tree, clock):
    before = {"proc/stat": "\n".join([cpu(0, 0, 0), cpu(1, 0, 0)]), "proc/self/status": "Cpus_allowed_list:\t0\n"} | process(50, 1, 0)
    after = {"proc/stat": "\n".join([cpu(0, 4, 6), cpu(1, 10, 0)])} | process(50, 1, 4)
    assert span(tree, clock, before, after).verdict == "quiet"


def test_stolen_time_is_named_and_is_not_counted_as_others(tree, clock):
    before = {"proc/stat": cpu(0, 0, 0)} | process(50, 1, 0)
    after = {"proc/stat": cpu(0, 7, 2, steal=1)} | process(50, 1, 7)
    found = span(tree, clock, before, after)
    assert (found.steal, found.others, found.verdict) == (0.1, 0.0, "noisy")
    assert "the hypervisor took 10%" in found.sentence
    assert "measure again" in found.sentence


def test_waiting_for_a_disk_is_idle(tree, clock):
    before = {"proc/stat": cpu(0, 0, 0)} | process(50, 1, 0)
    assert span(tree, clock, before, {"proc/stat": cpu(0, 1, 4, iowait=5)} | process(50, 1, 1)).verdict == "quiet"


def test_a_quota_that_held_back_is_noise(tree, clock):
    from .conftest import CGROUP2

    stat = "nr_throttled {}\nthrottled_usec {}\n"
    before = {"proc/stat": cpu(0, 0, 0), "sys/fs/cgroup/cpu.stat": stat.format(0, 0)} | CGROUP2 | process(50, 1, 0)
    after = {"proc/stat": cpu(0, 5, 5), "sys/fs/cgroup/cpu.stat": stat.format(9, 3_000_000)} | process(50, 1, 5)
    found = span(tree, clock, before, after)
    assert found.throttled == pytest.approx(0.3)
    assert found.verdict == "noisy"
    assert "a CPU quota held it back 30% of the time" in found.sentence


def test_a_short_span_says_nothing_of_other_processes(tree, clock):
    before = {"proc/stat": cpu(0, 0, 0)} | process(50, 1, 0)
    found = span(tree, clock, before, {"proc/stat": cpu(0, 0.1, 0)}, seconds=0.1)
    assert found.others == 0.0
    assert "too short" in found.sentence


def test_spread_of_timings_makes_it_noisy(tree, clock):
    files = {"proc/stat": cpu(0, 0, 0)} | process(50, 1, 0)
    found = span(tree, clock, files, {"proc/stat": cpu(0, 0, 10)}, timings=[[1, 1, 2, 2, 1.5], [1, 1.5, 2, 1, 2], [1, 1, 1, 1]])
    assert found.verdict == "noisy"
    assert found.spread == pytest.approx(2 / 3, abs=1e-4)  # of three series the middle one


def test_load_average_is_kept(tree, clock):
    files = {"proc/stat": cpu(0, 0, 0), "proc/loadavg": "1.25 0.5 0.1 1/80 999\n"} | process(50, 1, 0)
    assert span(tree, clock, files, {"proc/stat": cpu(0, 0, 10)}).load == 1.25


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ((0, 0, 0, 0), "quiet"),
        ((0.009, 0.049, 0.049, 0.009), "quiet"),
        ((0.01, 0, 0, 0), "some noise"),
        ((0, 0.05, 0, 0), "some noise"),
        ((0, 0, 0.05, 0), "some noise"),
        ((0.05, 0, 0, 0), "noisy"),
        ((0, 0.2, 0, 0), "noisy"),
        ((0, 0, 0.15, 0), "noisy"),
        ((0, 0, 0, 0.05), "noisy"),
    ],
)
def test_verdicts(shares, verdict):
    found = judge(*shares)
    assert found.verdict == verdict
    assert found.sentence.startswith(verdict.capitalize())


@given(st.lists(st.floats(1e-6, 1e3), min_size=4, max_size=40), st.floats(0.001, 1000))
def test_spread_does_not_depend_on_the_unit(values, factor):
    assert spread(values) >= 0
    assert spread([v * factor for v in values]) == pytest.approx(spread(values), rel=1e-6, abs=1e-9)


def test_few_timings_have_no_spread(tree, clock):
    files = {"proc/stat": cpu(0, 0, 0)} | process(50, 1, 0)
    assert span(tree, clock, files, {"proc/stat": cpu(0, 0, 10)}, timings=[[1, 2, 3]]).spread == 0.0


def test_the_result_of_a_block_that_still_runs_is_an_error(tree):
    with NoiseMeter(tree({"proc/stat": cpu(0, 0, 0)})) as meter:
        with pytest.raises(RuntimeError, match="has ended"):
            meter.result()


def test_this_machine_gives_shares_between_0_and_1():
    found = watch(0.3)
    assert 0 <= found.steal <= 1
    assert 0 <= found.others <= 1
    assert Noise.model_validate_json(found.model_dump_json()) == found


def test_without_proc_psutil_takes_over(tmp_path):
    found = watch(0.25, tmp_path)
    assert 0 <= found.others <= 1
