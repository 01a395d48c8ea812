"""Linear layers at the shapes of a small encoder in every installed runtime: what a precision gives a user, not what a matrix product could give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lissome.core.config import Config
from lissome.core.errors import EnvironmentLacks, MissingExtra
from lissome.core.measurement import Measurement
from lissome.machine.interleave import interleave, measured, speedup
from lissome.machine.stacks import RUNNERS, Stack

if TYPE_CHECKING:
    from lissome.machine.noise import NoiseMeter

# Feed-forward blocks of MiniLM-L6: 384 -> 1536 -> 384.
_WIDTHS = (384, 1536)
_SHAPES = ((32, "1 text of 32 tokens"), (1024, "32 texts of 32 tokens"))
# One pass should not take longer than this in torch fp32: fewer than MiniLM's six blocks are stacked for the large shape and on slow machines.
_PASS_S = 0.05


class LayerTiming(Config):
    """One engine and precision at one shape.

    time: ms per pass. over_torch: how many times faster than torch fp32; over_fp32: than the same engine in fp32 (None for fp32 itself).
    """

    engine: str
    precision: str
    shape: str
    time: Measurement
    over_torch: Measurement | None = None
    over_fp32: Measurement | None = None


class Layers(Config):
    """All timings, what was timed in words, and why some were left out."""

    what: str
    timings: tuple[LayerTiming, ...]
    skipped: Mapping[str, str] = {}

    def of(self, engine: str, precision: str) -> tuple[LayerTiming, ...]:
        """The timings of one engine and precision, small shape first."""
        return tuple(t for t in self.timings if (t.engine, t.precision) == (engine, precision))


def measure_layers(machine: str, cores: int, gflops: float, seconds: float = 8.0, noise: NoiseMeter | None = None) -> Layers:
    """Time a stack of linear layers on `cores` threads in each runtime, in turn. `gflops` is torch's fp32 peak, which sets how many layers are stacked."""
    import torch

    skipped: dict[str, str] = {}
    timings: list[LayerTiming] = []
    stacked: list[str] = []
    before = torch.get_num_threads()
    try:
        for rows, shape in _SHAPES:
            blocks = _blocks(rows, gflops)
            stacked.append(f"{blocks} for {shape}")
            timings += _at_shape(Stack(rows, _WIDTHS * blocks + _WIDTHS[:1]), shape, machine, cores, seconds / len(_SHAPES), skipped, noise)
    finally:
        torch.set_num_threads(before)
    return Layers(what=f"feed-forward blocks 384 -> 1536 -> 384 ({', '.join(stacked)})", timings=tuple(timings), skipped=skipped)


def _blocks(rows: int, gflops: float) -> int:
    """How many blocks to stack, 1 to 6."""
    one = Stack(rows, (*_WIDTHS, _WIDTHS[0])).flops
    return min(6, max(1, int(_PASS_S * gflops * 1e9 / one)))


def _at_shape(stack: Stack, shape: str, machine: str, cores: int, seconds: float, skipped: dict[str, str], noise: NoiseMeter | None) -> list[LayerTiming]:
    """All runners of one stack, interleaved."""
    works = {}
    for (engine, precision), build in RUNNERS.items():
        try:
            works[engine, precision] = build(stack, precision, cores)
        except MissingExtra as error:
            skipped[f"{engine} {precision}"] = f"{error.package} is not installed: {error.do}"
        except EnvironmentLacks as error:
            skipped[f"{engine} {precision}"] = error.what
    taken = interleave(works, seconds)
    timings = []
    for (engine, precision), values in taken.items():
        if noise is not None:
            noise.series(values)
        own, torch_fp32 = taken.get((engine, "fp32")), taken["torch", "fp32"]
        timings.append(
            LayerTiming(
                engine=engine,
                precision=precision,
                shape=shape,
                time=measured("layers", [value * 1e3 for value in values], "ms", machine),
                over_torch=None if (engine, precision) == ("torch", "fp32") else speedup(torch_fp32, values, machine),
                over_fp32=None if precision == "fp32" or own is None else speedup(own, values, machine),
            )
        )
    return timings
