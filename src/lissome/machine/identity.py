"""Which machine this is, read from the operating system in milliseconds: nothing is timed and torch is not imported.

Every reader takes the root of the file system and a `Host`, so that tests describe any machine by a made-up tree.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lissome.core.cache import digest
from lissome.core.manifest import MachineInfo
from lissome.machine.cgroup import cpu_quota, memory_limit, read_text

_X86_FLAGS = {
    "sse4_2": "SSE4.2",
    "avx": "AVX",
    "fma": "FMA",
    "f16c": "F16C",
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512F",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "amx_tile": "AMX-TILE",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "amx_fp16": "AMX-FP16",
}
_ARM_FLAGS = {
    "neon": "NEON",
    "asimd": "NEON",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
    "sme2": "SME2",
}
_SYSCTL_FLAGS = {
    "hw.optional.neon": "NEON",
    "hw.optional.AdvSIMD": "NEON",
    "hw.optional.arm.FEAT_FP16": "fp16",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "SME",
    "hw.optional.arm.FEAT_SME2": "SME2",
    "hw.optional.fma": "FMA",
    "hw.optional.f16c": "F16C",
    "hw.optional.avx1_0": "AVX",
    "hw.optional.avx2_0": "AVX2",
    "hw.optional.avx512f": "AVX-512F",
    "hw.optional.avx512vnni": "AVX512-VNNI",
}
# Arm Linux gives part numbers, not names (MIDR_EL1; the list is Arm's, as in util-linux's lscpu-arm.c).
_ARM_PARTS = {
    ("0x41", "0xb76"): "ARM1176",
    ("0x41", "0xc07"): "Cortex-A7",
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd44"): "Cortex-X1",
    ("0x41", "0xd46"): "Cortex-A510",
    ("0x41", "0xd47"): "Cortex-A710",
    ("0x41", "0xd48"): "Cortex-X2",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0xc0", "0xac3"): "Ampere-1",
}
_ORDER = tuple(dict.fromkeys([*_X86_FLAGS.values(), *_ARM_FLAGS.values()]))


@dataclass(frozen=True)
class Host:
    """What the running interpreter knows of its machine, apart from files.

    system: "Linux", "Darwin", "Windows". arch: "x86_64", "aarch64", "arm64". processor, cpus, ram_bytes: used where the system has no files to read.
    sysctl: macOS's hw.* and machdep.cpu.* values.
    """

    system: str
    arch: str
    processor: str = ""
    cpus: int = 1
    ram_bytes: int = 0
    sysctl: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cores:
    """Logical CPUs in the machine, those this process may run on, and the quota over them (CPUs' worth of time), if any."""

    present: int
    allowed: int
    quota: float | None = None

    @property
    def usable(self) -> int:
        """Threads that can all run at full speed: a quota of 1.5 gives 1, because two threads would be stopped a quarter of the time."""
        return max(1, min(self.allowed, math.floor(self.quota) if self.quota else self.allowed))

    @property
    def sentence(self) -> str:
        """The count and what limits it, in words."""
        text = f"{self.usable} usable core{'s' if self.usable > 1 else ''}"
        if self.quota and self.quota < self.allowed:
            return f"{text} of {self.present}: a CPU quota of {self.quota:g} holds"
        return text if self.allowed >= self.present else f"{text} of {self.present}: the process may run on no others"


@dataclass(frozen=True)
class Processor:
    """What /proc/cpuinfo or sysctl says: a name, the vendor's numbers for the design, instruction sets, logical CPUs."""

    name: str
    design: str
    isa: tuple[str, ...]
    count: int


def this_host() -> Host:
    """The Host of the running interpreter."""
    system, arch = platform.system(), platform.machine()
    if system == "Linux":
        return Host(system, arch, cpus=os.cpu_count() or 1)
    import psutil

    sysctl = parse_sysctl(_run("sysctl", "hw", "machdep.cpu")) if system == "Darwin" else {}
    return Host(system, arch, platform.processor(), os.cpu_count() or 1, psutil.virtual_memory().total, sysctl)


def identify(root: Path = Path("/"), host: Host | None = None) -> MachineInfo:
    """The machine in words and its fingerprint, in milliseconds.

    The fingerprint is made of the CPU's name and design, instruction sets, usable cores, RAM (rounded), operating system and architecture:
    no host name, serial number or address goes into it, so two equal machines share it.
    """
    host = host or this_host()
    cpu = processor(root, host)
    cores = usable_cores(root, host, cpu.count)
    ram = usable_ram(root, host)
    return MachineInfo(fingerprint=_fingerprint(cpu, cores.usable, ram, host), cpu=cpu.name, cores=cores.usable, ram_mb=round(ram / 1e6), isa=cpu.isa)


def processor(root: Path = Path("/"), host: Host | None = None) -> Processor:
    """Name, design and instruction sets of the CPU."""
    host = host or this_host()
    if host.system == "Linux":
        board = read_text(root / "proc/device-tree/model") or ""
        return parse_cpuinfo(read_text(root / "proc/cpuinfo") or "", host, board)
    if host.sysctl:
        return processor_from_sysctl(host)
    return Processor(host.processor or host.arch or "unknown CPU", host.arch, (), host.cpus)


def usable_cores(root: Path = Path("/"), host: Host | None = None, present: int | None = None) -> Cores:
    """CPUs that this process may use: its affinity (cpusets included) and the control group's quota count. Linux only; elsewhere all of them."""
    host = host or this_host()
    present = present or processor(root, host).count
    if host.system != "Linux":
        return Cores(present, present)
    return Cores(present, len(allowed_cpus(root)) or present, cpu_quota(root))


def allowed_cpus(root: Path = Path("/")) -> tuple[int, ...]:
    """Numbers of the CPUs in this process's affinity mask; empty where the system does not tell."""
    found = re.search(r"^Cpus_allowed_list:\s*(\S+)", read_text(root / "proc/self/status") or "", re.MULTILINE)
    cpus: list[int] = []
    for part in found.group(1).split(",") if found else ():
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return tuple(cpus)


def usable_ram(root: Path = Path("/"), host: Host | None = None) -> int:
    """Bytes of RAM that this process can have: the machine's, or the control group's limit where that is less. 0 where unknown."""
    host = host or this_host()
    if host.system != "Linux":
        return int(host.sysctl.get("hw.memsize", 0)) or host.ram_bytes
    found = re.search(r"^MemTotal:\s*(\d+) kB", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    total = int(found.group(1)) * 1024 if found else 0
    limit = memory_limit(root)
    return min(total, limit) if total and limit else total or limit or 0


def saturates(isa: Iterable[str]) -> bool:
    """Whether products of 8-bit weights overflow here: x86 without VNNI adds pairs of them in 16 bits (onnxruntime#6004)."""
    names = {name.upper().replace("_", "-") for name in isa}
    return "AVX2" in names and not any("VNNI" in name or "AMX" in name for name in names)


def last_level_cache(root: Path = Path("/"), host: Host | None = None) -> int:
    """Bytes of the largest cache that CPU 0 sees; 0 where the system does not tell."""
    host = host or this_host()
    if host.system != "Linux":
        return max((int(host.sysctl.get(key, 0)) for key in ("hw.l3cachesize", "hw.perflevel0.l2cachesize", "hw.l2cachesize")), default=0)
    sizes = [read_text(path) or "" for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
    return max((int(m.group(1)) * units[m.group(2)] for s in sizes if (m := re.fullmatch(r"(\d+)([KMG]?)", s))), default=0)


def parse_cpuinfo(text: str, host: Host, board: str = "") -> Processor:
    """Read /proc/cpuinfo of x86 or Arm. `board` is the device tree's model, which names small Arm machines better than their CPU does."""
    blocks = [dict(re.findall(r"^([\w ]+?)\s*:[ \t]*(.*?)\s*$", block, re.MULTILINE)) for block in re.split(r"\n\s*\n", text)]
    cpus = [block for block in blocks if "processor" in block and block["processor"].isdigit()]
    merged = {key: value for block in reversed(blocks) for key, value in block.items()}
    words = [set((cpu.get("flags") or cpu.get("Features") or "").split()) for cpu in cpus] or [set()]
    flags = set.intersection(*words)
    table = _X86_FLAGS if "flags" in merged else _ARM_FLAGS
    isa = tuple(name for name in _ORDER if any(flag in flags for flag, label in table.items() if label == name))
    design = "-".join(merged.get(key, "") for key in ("vendor_id", "cpu family", "model")) if "flags" in merged else _arm_design(cpus)
    return Processor(_cpu_name(merged, cpus, board) or host.arch or "unknown CPU", design, isa, len(cpus) or host.cpus)


def parse_sysctl(text: str) -> dict[str, str]:
    """`sysctl`'s "key: value" lines."""
    return {key: value.strip() for key, colon, value in (line.partition(":") for line in text.splitlines()) if colon}


def processor_from_sysctl(host: Host) -> Processor:
    """The processor of a Mac."""
    values = host.sysctl
    found = {label for key, label in _SYSCTL_FLAGS.items() if values.get(key) == "1"}
    if "hw.optional.arm64" in values and values["hw.optional.arm64"] == "1":
        found.add("NEON")  # every arm64 Mac has it; recent systems no longer list it
    design = "-".join(values.get(key, "") for key in ("machdep.cpu.vendor", "hw.cpufamily", "machdep.cpu.model"))
    count = int(values.get("hw.logicalcpu") or values.get("hw.ncpu") or host.cpus)
    return Processor(values.get("machdep.cpu.brand_string") or host.processor or host.arch, design, tuple(n for n in _ORDER if n in found), count)


def _cpu_name(merged: Mapping[str, str], cpus: list[dict[str, str]], board: str) -> str:
    """ "AMD EPYC 9654", or "Raspberry Pi 4 Model B Rev 1.4 (Cortex-A72)" where only the board has a name."""
    named = merged.get("model name", "")
    if "flags" in merged:
        return " ".join(re.sub(r"\((R|TM|tm)\)|\bCPU\b|@.*$|\d+-Core Processor|Processor$", " ", named).split())
    parts = dict.fromkeys(_ARM_PARTS.get((cpu.get("CPU implementer", ""), cpu.get("CPU part", "")), "") for cpu in cpus)
    core = " + ".join(part for part in parts if part) or named
    board = board or merged.get("Model", "")
    return f"{board} ({core})" if board and core else board or core


def _arm_design(cpus: list[dict[str, str]]) -> str:
    kinds = {"-".join(cpu.get(key, "") for key in ("CPU implementer", "CPU part", "CPU variant")) for cpu in cpus}
    return "+".join(sorted(kinds))


def _fingerprint(cpu: Processor, cores: int, ram: int, host: Host) -> str:
    """ "amd-epyc-2c-24gib-1f3a9c02": readable words, then a hash of all that counts."""
    size = rounded_ram(ram)
    key = digest(cpu.name, cpu.design, cpu.isa, cores, size, host.system, host.arch)[:8]
    words = re.sub(r"[^a-z0-9]+", "-", cpu.name.lower()).strip("-")[:32].rstrip("-")
    return f"{words}-{cores}c-{size}-{key}"


def rounded_ram(ram: int) -> str:
    """RAM up to the next GiB ("24gib"; below 2 GiB to the next 256 MiB): what a kernel keeps for itself differs from boot to boot."""
    if ram >= 2 * 1024**3:
        return f"{math.ceil(ram / 1024**3)}gib"
    return f"{math.ceil(ram / 1024**2 / 256) * 256}mib"


def _run(*command: str) -> str:
    """Output of a command; empty where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
