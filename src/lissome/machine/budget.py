"""A budget of memory for this process: what it takes already, and what is left for a model."""

from __future__ import annotations

from dataclasses import dataclass

from lissome.core.contract import parse_limit
from lissome.core.errors import BadInput
from lissome.machine.memory import current_rss, peak_rss

SPARE = 12_000_000
"""Bytes left for what Python and torch allocate on the way: texts, logits of the sampler, heaps that grow in steps. What is kept in memory beyond need is
given back when the process comes nearer to the budget than this."""


@dataclass(frozen=True)
class Budget:
    """bytes: what the process may take. floor: what it took before the model was opened: interpreter, torch, kernels, tokenizer."""

    bytes: int
    floor: int

    @property
    def room(self) -> int:
        """Bytes left for the model and its scratch, spare aside."""
        return self.bytes - self.floor - SPARE

    def over(self) -> bool:
        """Whether the process is now nearer to the budget than the spare."""
        return resident() > self.bytes - SPARE // 2


def measured_budget(size: int) -> Budget:
    """A budget of `size` bytes for this process as it stands now. Raises BadInput where the process alone has already taken more."""
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
    return int(1e6 * current_rss("").value)


def megabytes(size: float) -> str:
    """Bytes in words, decimal MB."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:,.1f} MB"
