"""What a process weighs: resident memory now and at its peak. MB are decimal (10^6 bytes)."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from lissome.core.errors import BadInput, EnvironmentLacks
from lissome.core.measurement import Measurement
from lissome.machine.cgroup import read_text


def peak_rss(machine: str, pid: int | None = None, root: Path = Path("/")) -> Measurement:
    """Largest resident memory of a process so far (this one by default), as Measurement "memory" in MB.

    Linux: VmHWM of /proc/PID/status, which starts anew at exec; pages shared with others and mapped files in memory count.
    (`ru_maxrss` is not used there: a child inherits its parent's peak.) Elsewhere: the peak the system keeps, macOS for this process only.
    One reading is one repetition (n=1) without an interval of its own: repeat the process to get one.
    Raises BadInput when the process is gone, EnvironmentLacks where the system keeps no peak.
    """
    return _mb(_status_bytes("VmHWM", pid, root) if _has_proc(root) else _peak_elsewhere(pid), "memory", machine)


def current_rss(machine: str, pid: int | None = None, root: Path = Path("/")) -> Measurement:
    """Resident memory of a process now, as Measurement "rss" in MB. Raises BadInput when the process is gone."""
    if _has_proc(root):
        return _mb(_status_bytes("VmRSS", pid, root), "rss", machine)
    import psutil

    try:
        return _mb(int(psutil.Process(pid).memory_info().rss), "rss", machine)
    except psutil.NoSuchProcess:
        raise _gone(pid) from None


def _mb(size: int, name: str, machine: str) -> Measurement:
    value = size / 1e6
    return Measurement(name, value, value, value, "MB", 1, "measured", machine)


def _has_proc(root: Path) -> bool:
    return (root / "proc/self/status").exists()


def _name(pid: int | None) -> str:
    return "self" if pid is None else str(pid)


def _status_bytes(key: str, pid: int | None, root: Path) -> int:
    """One "kB" line of /proc/PID/status, in bytes. A zombie has no such lines: its memory is gone."""
    text = read_text(root / "proc" / _name(pid) / "status")
    found = re.search(rf"^{key}:\s*(\d+) kB", text or "", re.MULTILINE)
    if found is None:
        raise _gone(pid)
    return int(found.group(1)) * 1024


def _gone(pid: int | None) -> BadInput:
    return BadInput(f"process {_name(pid)} has no memory to read: it has ended", do="read the peak from inside the process, before it ends")


def _peak_elsewhere(pid: int | None) -> int:
    """The peak without /proc: Windows keeps one for every process, macOS tells a process its own."""
    import psutil

    try:
        peak = getattr(psutil.Process(pid).memory_info(), "peak_wset", None)
    except psutil.NoSuchProcess:
        raise _gone(pid) from None
    if peak is not None:
        return int(peak)
    if pid not in (None, os.getpid()) or sys.platform == "win32":
        raise EnvironmentLacks("this system does not tell the peak memory of another process", do="call peak_rss from inside that process")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes elsewhere
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
