"""Linux control groups, versions 1 and 2: the CPU quota and memory limit that a container or service lives under.

Every reader takes the root of the file system, so that tests can hand in a made-up tree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Throttling:
    """How often, and for how many seconds in all, a CPU quota has stopped this control group since it was made."""

    times: int
    seconds: float


def read_text(path: Path) -> str | None:
    """The file's text without surrounding blanks, or None where it is absent or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip(" \t\r\n\0")
    except OSError:
        return None


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time per second that the quota allows (1.5 means 150 ms each 100 ms), or None without one.

    The tightest of this group and all its parents counts.
    """
    found = []
    for folder in control_folders(root, "cpu"):
        quota, period = None, None
        if (both := read_text(folder / "cpu.max")) is not None:
            quota, _, period = both.partition(" ")
        else:
            quota, period = read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")
        if _is_count(quota) and _is_count(period) and int(quota or 0) > 0 and int(period or 0) > 0:
            found.append(int(quota or 0) / int(period or 1))
    return min(found, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """The memory limit in bytes, or None without one. "No limit" of version 1 is a huge number: callers take the minimum with the RAM."""
    found = []
    for folder in control_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = read_text(folder / name)
            if _is_count(text) and int(text or 0) > 0:
                found.append(int(text or 0))
    return min(found, default=None)


def throttling(root: Path = Path("/")) -> Throttling | None:
    """The throttling counters of the group that holds this process, or None where there are none."""
    for folder in control_folders(root, "cpu"):
        text = read_text(folder / "cpu.stat") or ""
        stat = {key: int(value) for key, value in re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE)}
        if "nr_throttled" in stat:
            return Throttling(stat["nr_throttled"], stat["throttled_usec"] / 1e6 if "throttled_usec" in stat else stat.get("throttled_time", 0) / 1e9)
    return None


def control_folders(root: Path, controller: str) -> list[Path]:
    """Folders that may limit `controller` ("cpu", "memory") for this process: its own group first, then each parent up to the mount.

    A container often sees its own group mounted as the top, while /proc/self/cgroup still names the path on the host:
    the mount's own root is cut off that path, and what does not exist here is simply not found by the readers.
    """
    paths = _group_paths(root)
    folders: list[Path] = []
    for mount_root, mount_point, kind, options in _mounts(root):
        path = paths.get("") if kind == "cgroup2" else paths.get(controller) if controller in options else None
        if path is None:
            continue
        inside = path.removeprefix(mount_root) if f"{path}/".startswith(f"{mount_root}/") else path
        top = root / mount_point.lstrip("/")
        parts = [part for part in inside.split("/") if part and part != ".."]
        folders += [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return folders


def _group_paths(root: Path) -> dict[str, str]:
    """Controller name -> path of this process's group; the key "" is version 2's single tree."""
    paths = {}
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "?", "/")
        paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _mounts(root: Path) -> list[tuple[str, str, str, set[str]]]:
    """(root of the mount, mount point, "cgroup" or "cgroup2", super options) of every cgroup mount; format in proc(5)."""
    mounts = []
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if len(before) >= 5 and len(after) >= 3 and after[0] in ("cgroup", "cgroup2"):
            mounts.append((before[3], before[4].replace("\\040", " "), after[0], set(after[2].split(","))))
    return mounts


def _is_count(text: str | None) -> bool:
    return text is not None and text.isdigit()
