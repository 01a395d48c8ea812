"""A budget of memory for this process: what it takes already, and what is left for a model."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from lissome.core.contract import parse_limit
from lissome.core.errors import BadInput
from lissome.machine.cgroup import read_text
from lissome.machine.memory import current_rss, peak_rss

DONTNEED = 4
"""madvise(2) on Linux: give the pages back."""
_MAP = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+)\s*(.*)$")
"""A map's line in /proc/PID/smaps: begin, end, rights, inode, path."""
SPARE = 12_000_000
"""Bytes left for what is allocated on the way: texts, logits of the sampler, heaps that grow in steps. What is kept in memory beyond need is
given back when the process comes nearer to the budget than this."""


@dataclass(frozen=True)
class Budget:
    """bytes: what the process may take. floor: what it took before the model was opened: interpreter, kernels, tokenizer."""

    bytes: int
    floor: int

    @property
    def room(self) -> int:
        """Bytes left for the model and its scratch, spare aside."""
        return self.bytes - self.floor - SPARE

    def over(self) -> bool:
        """Whether the process is now nearer to the budget than half the spare, and stays so after giving back what it can spare."""
        nearest = self.bytes - SPARE // 2
        if resident() <= nearest:
            return False
        give_back()
        return resident() > nearest


def measured_budget(size: int) -> Budget:
    """A budget of `size` bytes for this process as it stands now. Raises BadInput where the process alone has already taken more."""
    give_back()
    taken, peak = resident(), int(1e6 * peak_rss("").value)
    if max(taken + SPARE, peak) > size:
        raise BadInput(
            f"a memory budget of {megabytes(size)} is less than this process takes without a model: {megabytes(taken)} now, {megabytes(peak)} at its peak",
            expected=f"more than {megabytes(max(taken + SPARE, peak))}, {megabytes(SPARE)} of spare included",
            do="give it more",
        )
    return Budget(size, taken)


def parse_bytes(text: str) -> int:
    """Bytes in "300MB" or "2GiB". Raises BadInput."""
    try:
        limit = parse_limit("memory", text)
    except ValueError:
        limit = None
    if limit is None or limit.relative:
        raise BadInput(f'"{text}" is not an amount of memory', expected='"300MB", "2GiB"')
    return int(1e6 * limit.bound)


def resident() -> int:
    """Bytes of this process in memory now."""
    counts = read_text(Path("/proc/self/statm"))  # a tenth of the time of /proc/self/status: this is asked between layers
    return int(counts.split()[1]) * mmap.PAGESIZE if counts else int(1e6 * current_rss("").value)


def give_back() -> None:
    """Return what the process has in memory and does not need there: freed heaps, and pages of libraries, most of whose code ran once, while they were loaded.

    Pages of libraries come back by themselves from the system's cache when they are touched. Only maps of files that may not be written and of which no
    page was changed are given back. Nothing is done where there is no Linux.
    """
    text = read_text(Path("/proc/self/smaps"))
    if not text or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    found: tuple[int, int] | None = None
    for line in text.splitlines():
        if head := _MAP.match(line):
            plain = "w" not in head[3] and head[4] not in ("", "0") and (head[5].startswith("/") and not head[5].endswith("(deleted)"))
            found = (int(head[1], 16), int(head[2], 16)) if plain else None
        elif found and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                libc.madvise(ctypes.c_void_p(found[0]), ctypes.c_size_t(found[1] - found[0]), DONTNEED)
            found = None


def megabytes(size: float) -> str:
    """Bytes in words, decimal MB."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:,.1f} MB"
