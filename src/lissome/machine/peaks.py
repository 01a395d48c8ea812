"""Measured peaks: what matrix products and copies reach on this machine, on one thread and on all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lissome.core.config import Config
from lissome.core.errors import EnvironmentLacks
from lissome.core.measurement import Measurement
from lissome.machine.identity import last_level_cache
from lissome.machine.interleave import Work, interleave, rate, speedup, timed
from lissome.machine.stacks import RUNNERS, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lissome.machine.noise import NoiseMeter

Kind = Literal["fp32", "bf16", "int8", "copy"]
_SIZES = (256, 512, 1024, 2048)
# A product of the next size takes eight times as long; sizes grow while one product stays below this.
_LONGEST_S = 0.1


class Peak(Config):
    """One peak. timed: exactly what ran ("torch.matmul, 1024 x 1024 x 1024"). figure: None where it could not be measured, and then why says so."""

    kind: Kind
    threads: int
    timed: str
    figure: Measurement | None = None
    why: str = ""


class Gain(Config):
    """How much faster one peak is than another, from paired rounds: `faster` over `slower`."""

    faster: str
    slower: str
    ratio: Measurement


class Peaks(Config):
    """All peaks, one entry per kind and thread count, and the ratios between them that matter."""

    entries: tuple[Peak, ...]
    gains: tuple[Gain, ...] = ()

    def get(self, kind: Kind, threads: int | None = None) -> Peak | None:
        """The peak of that kind at that thread count (None: the most threads), measured or not; None where there is no entry."""
        found = [entry for entry in self.entries if entry.kind == kind and threads in (None, entry.threads)]
        return max(found, key=lambda entry: entry.threads, default=None)

    def gain(self, faster: str, slower: str) -> Measurement | None:
        """The ratio of two peaks by name ("bf16" over "fp32"; "fp32 all threads" over "fp32 one thread")."""
        return next((g.ratio for g in self.gains if (g.faster, g.slower) == (faster, slower)), None)


@dataclass(frozen=True)
class _Candidate:
    """One way to do a kind of product. flops: of one call."""

    kind: Kind
    timed: str
    flops: float
    make: Callable[[int], Work]


def measure_peaks(machine: str, cores: int, seconds: float = 8.0, noise: NoiseMeter | None = None) -> Peaks:
    """Peaks of matrix products (GFLOP/s; int8 in GOP/s) and copies (GB/s, bytes read plus bytes written), on one thread and on `cores`.

    All products are timed in turn in one run. int8 is the best of the ways that are installed, and `timed` names it. `seconds` is spent on the
    timing, some more on building. torch's thread count is as before afterwards.
    """
    with _torch_threads():
        products, missing = _candidates()
        entries, gains = _time_products(products, missing, machine, cores, seconds * 0.75, noise)
        copies, copy_gains = _time_copies(machine, cores, seconds * 0.25, noise)
    return Peaks(entries=(*entries, *copies), gains=(*gains, *copy_gains))


def _time_products(
    candidates: Sequence[_Candidate], missing: dict[Kind, str], machine: str, cores: int, seconds: float, noise: NoiseMeter | None
) -> tuple[list[Peak], list[Gain]]:
    """Peaks and gains of the products, from one interleaved run over candidates and thread counts."""
    counts = sorted({1, cores})
    works = {(c, threads): c.make(threads) for threads in counts for c in candidates}
    taken = interleave(works, seconds)
    entries: list[Peak] = []
    best: dict[tuple[Kind, int], list[float]] = {}
    for kind in ("fp32", "bf16", "int8"):
        for threads in counts:
            options = [(c, taken[c, threads]) for c in candidates if c.kind == kind]
            if not options:
                entries.append(Peak(kind=kind, threads=threads, timed="not available", why=missing.get(kind, "nothing here computes it")))
                continue
            chosen, values = min(options, key=lambda option: _middle(option[1]) / option[0].flops)
            best[kind, threads] = [chosen.flops / value for value in values]
            figure = rate(f"{kind}_gemm", chosen.flops / 1e9, values, "GOP/s" if kind == "int8" else "GFLOP/s", machine)
            entries.append(Peak(kind=kind, threads=threads, timed=chosen.timed, figure=figure))
            if noise is not None:
                noise.series(values)
    pairs = [(kind, "fp32", best.get((kind, cores)), best.get(("fp32", cores))) for kind in ("bf16", "int8")]
    if cores > 1:
        pairs.append(("fp32 all threads", "fp32 one thread", best.get(("fp32", cores)), best.get(("fp32", 1))))
    return entries, [_gain(faster, slower, a, b, machine) for faster, slower, a, b in pairs if a and b]


def _time_copies(machine: str, cores: int, seconds: float, noise: NoiseMeter | None) -> tuple[list[Peak], list[Gain]]:
    """Peaks and gain of copying an array that no cache holds."""
    import psutil
    import torch

    size = min(max(4 * last_level_cache(), 64 << 20), 512 << 20, max(psutil.virtual_memory().available // 8, 1 << 20))
    source = torch.ones(size // 4)
    target = torch.empty_like(source)

    def copier(threads: int) -> Work:
        def run() -> None:
            torch.set_num_threads(threads)
            target.copy_(source)

        return run

    counts = sorted({1, cores})
    taken = interleave({threads: copier(threads) for threads in counts}, seconds)
    text = f"torch copy of {size / 1e6:.0f} MB, read plus written"
    peaks = [Peak(kind="copy", threads=n, timed=text, figure=rate("copy", 2 * size / 1e9, taken[n], "GB/s", machine)) for n in counts]
    if noise is not None:
        for values in taken.values():
            noise.series(values)
    rates = {n: [1 / value for value in taken[n]] for n in counts}
    gains = [_gain("copy all threads", "copy one thread", rates[cores], rates[1], machine)] if cores > 1 else []
    return peaks, gains


def _candidates() -> tuple[list[_Candidate], dict[Kind, str]]:
    """Every way to do a product here, each at a size that takes well under a second, and why a kind has none."""
    missing: dict[Kind, str] = {}
    found: list[_Candidate] = []
    largest = _SIZES[-1]
    for kind, name, build in _torch_products():
        try:
            largest_here = _fitting_size(build, largest)
        except (RuntimeError, NotImplementedError) as error:
            missing[kind] = f"{name} does not work here: {str(error).splitlines()[0]}"
            continue
        largest = largest_here if kind == "fp32" else largest
        found.append(_Candidate(kind, f"{name}, {_cube(largest_here)}", 2.0 * largest_here**3, _at_size(build, largest_here)))
    for engine, precision, name in (
        ("onnxruntime", "int8-dynamic", "onnxruntime MatMulInteger with float input and output"),
        ("openvino", "int8-static", "openvino int8 MatMul with float input and output"),
    ):
        stack = Stack(largest, (largest, largest))
        make = _in_runtime(engine, precision, stack)
        with suppress(EnvironmentLacks):
            make(1)
            found.append(_Candidate("int8", f"{name}, {_cube(largest)}", stack.flops, make))
    return found, missing


def _torch_products() -> list[tuple[Kind, str, Callable[[int], Work]]]:
    """torch's products, fp32 first: (kind, name, size -> work)."""
    import torch

    def floats(dtype: torch.dtype) -> Callable[[int], Work]:
        def build(size: int) -> Work:
            a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
            return lambda: torch.matmul(a, b)

        return build

    products: list[tuple[Kind, str, Callable[[int], Work]]] = [
        ("fp32", "torch.matmul", floats(torch.float32)),
        ("bf16", "torch.matmul", floats(torch.bfloat16)),
    ]
    # Private API: it may go, and which layout of the second factor is quicker differs by CPU and thread count.
    product: Any = getattr(torch, "_int_mm", None)
    if product is None:
        return products

    def integers(transposed: bool) -> Callable[[int], Work]:
        def build(size: int) -> Work:
            a, b = (torch.randint(-127, 127, (size, size), dtype=torch.int8) for _ in range(2))
            factor = b.t() if transposed else b
            return lambda: product(a, factor)

        return build

    return [*products, ("int8", "torch._int_mm, row-major", integers(False)), ("int8", "torch._int_mm, transposed", integers(True))]


def _fitting_size(build: Callable[[int], Work], largest: int) -> int:
    """The largest size up to `largest` whose product stays quick, found from the smallest up: some CPUs run bf16 or int8 in a plain loop.

    On one thread, because two threads with a busy neighbour can take fifty times as long (they wait for each other, spinning).
    """
    import torch

    torch.set_num_threads(1)
    for size in _SIZES:
        work = build(size)
        work()
        quickest = min(timed(work) for _ in range(2))
        if size >= largest or 8 * quickest > _LONGEST_S:
            return size
    return largest


def _at_size(build: Callable[[int], Work], size: int) -> Callable[[int], Work]:
    """threads -> work, at a fixed size; one set of arrays serves all thread counts."""
    import torch

    work = build(size)

    def make(threads: int) -> Work:
        def run() -> None:
            torch.set_num_threads(threads)
            work()

        return run

    return make


def _in_runtime(engine: str, precision: str, stack: Stack) -> Callable[[int], Work]:
    return lambda threads: RUNNERS[engine, precision](stack, precision, threads)


def _gain(faster: str, slower: str, a: Sequence[float], b: Sequence[float], machine: str) -> Gain:
    """The ratio of two series of rates, round by round."""
    return Gain(faster=faster, slower=slower, ratio=speedup([1 / r for r in b], [1 / r for r in a], machine))


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _cube(size: int) -> str:
    return f"{size} x {size} x {size}"


@contextmanager
def _torch_threads() -> Iterator[None]:
    """Give torch its thread count back afterwards."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
