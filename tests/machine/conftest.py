"""Made-up machines: each is a set of files below a root, and the facts that no file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lissome.machine.identity import Host

XEON_FLAGS = "fpu sse4_2 fma avx f16c avx2 avx512f avx512dq avx512bw avx512_vnni avx_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8 rdpid"
ZEN4_FLAGS = "fpu sse4_2 fma avx f16c avx2 avx512f avx512dq avx512_bf16 avx512vbmi avx512_vnni"
CGROUP2 = {
    "proc/self/cgroup": "0::/\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n",
}
SYSCTL_M2 = """hw.ncpu: 8
hw.logicalcpu: 8
hw.memsize: 17179869184
hw.cpufamily: -634136515
hw.optional.arm64: 1
hw.optional.AdvSIMD: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_SME: 0
hw.perflevel0.l2cachesize: 16777216
machdep.cpu.brand_string: Apple M2
"""


def x86(name: str, model: int, flags: str, cpus: int, vendor: str = "GenuineIntel", family: int = 6) -> str:
    """/proc/cpuinfo of an x86 machine."""
    block = (
        "processor\t: {i}\nvendor_id\t: {v}\ncpu family\t: {f}\nmodel\t\t: {m}\nmodel name\t: {n}\ncpu MHz\t\t: {hz}\nflags\t\t: {flags}\npower management:\n"
    )
    return "\n".join(block.format(i=i, v=vendor, f=family, m=model, n=name, hz=2000 + i, flags=flags) for i in range(cpus))


def pi4(serial: str = "10000000abcdef01") -> str:
    """/proc/cpuinfo of a 64-bit Raspberry Pi 4."""
    block = (
        "processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"
        "CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n"
    )
    tail = f"Revision\t: c03114\nSerial\t\t: {serial}\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"
    return "\n".join(block.format(i=i) for i in range(4)) + "\n" + tail


def meminfo(kb: int) -> str:
    """/proc/meminfo."""
    return f"MemTotal:       {kb} kB\nMemFree:        {kb // 2} kB\n"


def status(cpus: str) -> str:
    """The affinity line of /proc/self/status."""
    return f"Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}\n"


Write = Callable[[Mapping[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Write:
    """Write files below one root; may be called again to change some."""

    def write(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "root"

    return write


@pytest.fixture
def machines() -> dict[str, tuple[Host, dict[str, str]]]:
    """Machines by name."""
    xeon = {
        "proc/cpuinfo": x86("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 143, XEON_FLAGS, 8),
        "proc/meminfo": meminfo(32_800_000),
        "proc/self/status": status("0-7"),
    }
    return {
        "xeon": (Host("Linux", "x86_64"), xeon),
        "zen4": (
            Host("Linux", "x86_64"),
            {
                "proc/cpuinfo": x86("AMD EPYC 9654 96-Core Processor", 17, ZEN4_FLAGS, 2, "AuthenticAMD", 25),
                "proc/meminfo": meminfo(24_684_096),
                "proc/self/status": status("0,1"),
            },
        ),
        "pi4": (Host("Linux", "aarch64"), {"proc/cpuinfo": pi4(), "proc/meminfo": meminfo(3_884_000), "proc/self/status": status("0-3")}),
        "container": (Host("Linux", "x86_64"), {**xeon, **CGROUP2, "sys/fs/cgroup/cpu.max": "150000 100000\n", "sys/fs/cgroup/memory.max": "2147483648\n"}),
    }
