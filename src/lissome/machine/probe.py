"""`probe`: the machine, its measured peaks and levers, its counters and engines, in one answer that is kept."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping

from lissome.core.cache import Cache, digest
from lissome.core.config import Config
from lissome.core.manifest import MachineInfo
from lissome.core.progress import Progress, Silent
from lissome.machine.compiler import compiler, wanted
from lissome.machine.energy import EnergyState, energy_state
from lissome.machine.identity import Cores, Host, identify, this_host, usable_cores
from lissome.machine.layers import Layers, measure_layers
from lissome.machine.levers import Lever, levers
from lissome.machine.noise import Noise, NoiseMeter, watch
from lissome.machine.peaks import Peaks, measure_peaks
from lissome.machine.versions import installed, versions

# Raised whenever what a probe measures or says changes, so that an older answer is not reused.
_SCHEMA = 1
ENGINES: dict[str, str] = {
    "torch": "",
    "transformers": "",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "nncf": "openvino",
    "executorch": "",
    "ai-edge-litert": "",
}
"""Packages that run or prepare models -> the extra that brings them ("" where no extra does)."""


class Compiler(Config):
    """The C++ compiler, which torch.compile needs. path: None where there is none."""

    path: str | None
    sentence: str


class Probe(Config):
    """What `lissome probe` found.

    engines: installed package -> version. missing: package -> what brings it. system: "Linux 6.18 x86_64". seconds: how long the probe took.
    """

    machine: MachineInfo
    system: str
    python: str
    cores: str
    peaks: Peaks
    layers: Layers
    levers: tuple[Lever, ...]
    energy: EnergyState
    engines: Mapping[str, str]
    missing: Mapping[str, str]
    compiler: Compiler
    noise: Noise
    versions: Mapping[str, str]
    seconds: float

    @property
    def sentences(self) -> tuple[str, ...]:
        """Everything worth saying in words: levers, compiler, energy, noise (first where it was noisy, because it colours all the rest)."""
        said = (*(lever.sentence for lever in self.levers), self.compiler.sentence, self.energy.sentence)
        return (self.noise.sentence, *said) if self.noise.verdict == "noisy" else (*said, self.noise.sentence)


def probe(cache: Cache | None = None, progress: Progress | None = None, *, fresh: bool = False) -> Probe:
    """Measure this machine (under a minute), or hand over what an earlier probe of the same machine and versions found.

    `fresh` measures again, and so does an answer from a noisy moment when it is quiet now. What was found is kept in `cache`, if one is given.
    """
    progress = progress or Silent()
    key = probe_key(identify())
    kept = _kept(cache, key) if cache is not None and not fresh else None
    if kept is not None and (kept.noise.verdict != "noisy" or watch().verdict == "noisy"):
        return kept
    found = _measure(progress)
    if cache is not None:
        cache.put("probe", key, found.model_dump(mode="json"))
    return found


def probe_key(machine: MachineInfo) -> str:
    """The cache key of a probe: it holds for one machine and one set of versions, engines included."""
    return digest("probe", _SCHEMA, machine.fingerprint, versions(), installed_engines()[0])


def installed_engines() -> tuple[dict[str, str], dict[str, str]]:
    """(package -> version of what is installed, package -> how to get it for what is not), without importing any."""
    found = {package: installed(package) for package in ENGINES}
    missing = {p: f'pip install "lissome[{ENGINES[p]}]"' if ENGINES[p] else f"pip install {p}" for p, version in found.items() if version is None}
    return {package: version for package, version in found.items() if version is not None}, missing


def find_compiler() -> Compiler:
    """The C++ compiler torch.compile uses, in a sentence; without one, how to get it."""
    if (path := compiler()) is not None:
        return Compiler(path=path, sentence=f"C++ compiler: {path}, so torch.compile can be used.")
    if "CXX" in os.environ:
        return Compiler(path=None, sentence=f'No C++ compiler: CXX is set to "{wanted()}", which is not there, and torch.compile is left out.')
    fix = {"Linux": "apt install g++", "Darwin": "xcode-select --install"}.get(platform.system(), "install a C++ compiler")
    return Compiler(path=None, sentence=f"No C++ compiler: torch.compile is left out. To get one: {fix}.")


def _kept(cache: Cache, key: str) -> Probe | None:
    """An earlier answer; None where there is none or where it does not fit today's schema."""
    try:
        value = cache.get("probe", key)
        return Probe.model_validate(value) if value is not None else None
    except ValueError:
        return None


def _measure(progress: Progress) -> Probe:
    """Do the work."""
    begun = time.perf_counter()
    host = this_host()
    machine, cores = identify(host=host), usable_cores(host=host)
    progress.stage("probing this machine", 3)
    with NoiseMeter() as meter:
        peaks = measure_peaks(machine.fingerprint, cores.usable, noise=meter)
        progress.step(note="matrix products, copies")
        layers = measure_layers(machine.fingerprint, cores.usable, _torch_gflops(peaks), noise=meter)
        progress.step(note="linear layers in each engine")
    engines, missing = installed_engines()
    noise = meter.result()
    progress.step(note="counters, versions")
    return Probe(
        machine=machine.model_copy(update={"noise": noise.sentence}),
        system=f"{host.system} {platform.release()} {host.arch}",
        python=platform.python_version(),
        cores=_cores_sentence(cores, host),
        peaks=peaks,
        layers=layers,
        levers=levers(peaks, layers),
        energy=energy_state(),
        engines=engines,
        missing=missing,
        compiler=find_compiler(),
        noise=noise,
        versions=versions(),
        seconds=round(time.perf_counter() - begun, 2),
    )


def _torch_gflops(peaks: Peaks) -> float:
    """torch's fp32 peak on all cores, or a cautious figure where it could not be measured."""
    peak = peaks.get("fp32")
    return peak.figure.value if peak is not None and peak.figure is not None else 5.0


def _cores_sentence(cores: Cores, host: Host) -> str:
    """The usable cores in words; where the system does not tell the quota, that is said."""
    return cores.sentence if host.system == "Linux" else f"{cores.sentence} ({host.system} tells no limits)"
