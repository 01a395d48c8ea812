from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lissome.core.errors import BadInput, EnvironmentLacks
from lissome.machine.memory import current_rss, peak_rss

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
STATUS = "Name:\tx\nVmHWM:\t  200000 kB\nVmRSS:\t  100000 kB\n"


def test_peak_and_current_are_decimal_megabytes(tree):
    root = tree({"proc/self/status": STATUS, "proc/42/status": STATUS.replace("200000", "300000")})
    peak, now = peak_rss("here", root=root), current_rss("here", root=root)
    assert (peak.name, peak.value, peak.unit, peak.n, peak.method, peak.machine) == ("memory", 204.8, "MB", 1, "measured", "here")
    assert (now.name, now.value) == ("rss", 102.4)
    assert peak_rss("here", 42, root).value == 307.2


def test_a_process_that_is_gone_or_a_zombie_says_so(tree):
    root = tree({"proc/self/status": STATUS, "proc/7/status": "Name:\tz\nState:\tZ (zombie)\n"})
    for pid in (7, 8):
        with pytest.raises(BadInput, match=rf"process {pid} has no memory to read: it has ended") as error:
            peak_rss("here", pid, root)
        assert "from inside the process" in error.value.text()


@linux
def test_peak_grows_with_an_array_and_stays_after_it():
    before = current_rss("here").value
    block = bytearray(b"x") * 80_000_000  # written, so that every page is there
    grown = peak_rss("here").value
    assert grown > before + len(block) / 1e6 - 10
    del block
    assert grown >= current_rss("here").value
    assert peak_rss("here").value == pytest.approx(grown, abs=5)


@linux
def test_peak_of_a_child_is_its_own_not_its_parent_s():
    block = bytearray(120_000_000)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert peak_rss("here", child.pid).value < 100 < len(block) / 1e6
    finally:
        child.communicate(b"\n")
    with pytest.raises(BadInput, match="has ended"):
        peak_rss("here", child.pid)


def test_without_proc_psutil_takes_over(tmp_path):
    assert current_rss("here", root=tmp_path).value > 1
    assert peak_rss("here", os.getpid(), root=tmp_path).value > 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps a peak for every process")
def test_without_proc_the_peak_of_another_process_is_refused(tmp_path):
    with pytest.raises(EnvironmentLacks, match="does not tell the peak memory of another process"):
        peak_rss("here", os.getppid(), root=tmp_path)
