"""The contract: limits a user sets, what the optimiser itself may spend, and the verdict on each limit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from pydantic import field_validator, model_validator

from lissome.core.config import Config
from lissome.core.measurement import Measurement

Quantity = Literal["max_drop", "latency", "memory", "size", "energy"]
Status = Literal["met", "not met", "infeasible"]

_UNITS: dict[Quantity, dict[str, float]] = {
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "memory": {"kb": 1e-3, "mb": 1.0, "gb": 1e3, "kib": 1.024e-3, "mib": 1.048576, "gib": 1073.741824},
    "size": {"kb": 1e-3, "mb": 1.0, "gb": 1e3, "kib": 1.024e-3, "mib": 1.048576, "gib": 1073.741824},
    "energy": {"uj": 1e-3, "mj": 1.0, "j": 1e3},
}
UNIT: dict[Quantity, str] = {"max_drop": "pt", "latency": "ms", "memory": "MB", "size": "MB", "energy": "mJ"}
_EXAMPLES: dict[Quantity, str] = {
    "max_drop": '"1%" or "1pt" (percentage points), or "1%rel" (of the original\'s score)',
    "latency": '"10ms", "p95 10ms", or "3x" (three times faster than the original)',
    "memory": '"60MB", or "2x" (half the original\'s)',
    "size": '"20MB", or "4x" (a quarter of the original\'s)',
    "energy": '"3mJ" per call, or "2x"',
}


@dataclass(frozen=True, slots=True)
class Limit:
    """One parsed limit.

    name: the measurement it bounds ("latency_p50"). bound: in `unit`, or the factor when `relative`
    (for max_drop, a relative bound is a percentage of the original's score).
    """

    quantity: Quantity
    name: str
    bound: float
    unit: str
    relative: bool

    def __str__(self) -> str:
        if self.quantity == "max_drop":
            return f"accuracy drop <= {self.bound:g} {'% of the original score' if self.relative else 'pt'}"
        label = self.name.replace("_", " ")
        return f"{label} at least {self.bound:g}x below the original" if self.relative else f"{label} <= {self.bound:g} {self.unit}"


def parse_limit(quantity: Quantity, text: str) -> Limit:
    """Read a limit as users write it ("p95 10ms", "3x", "1%"). Raises ValueError that shows valid examples."""
    words = text.strip().lower().replace("<=", " ").replace("<", " ").replace(":", " ")
    name: str = quantity
    if quantity == "latency":
        percentile = re.search(r"\bp(50|95)\b", words)
        name = f"latency_p{percentile.group(1)}" if percentile else "latency_p50"
        words = re.sub(r"\bp(50|95)\b", " ", words)
    match = re.fullmatch(r"([-+]?\d*\.?\d+(?:e-?\d+)?)\s*([a-z%]*)(?:\s*(rel|relative))?", words.strip())
    wrong = f'"{text}" is not a limit on {quantity}; write {_EXAMPLES[quantity]}'
    if match is None:
        raise ValueError(wrong)
    number, unit = float(match.group(1)), match.group(2)
    if quantity == "max_drop":
        if unit in ("%rel", "rel"):
            unit, relative = "%", True
        else:
            relative = match.group(3) is not None
        if unit not in ("%", "pt", "pts"):
            raise ValueError(wrong)
        if not 0 <= number < 100:
            raise ValueError(f'"{text}": an allowed drop lies between 0 and 100 points; write {_EXAMPLES[quantity]}')
        return Limit(quantity, "max_drop", number, "pt", relative)
    relative = unit == "x"
    if not relative and unit not in _UNITS[quantity]:
        raise ValueError(wrong)
    if number <= 0:
        raise ValueError(f'"{text}": a limit on {quantity} must be above zero; write {_EXAMPLES[quantity]}')
    bound = number if relative else number * _UNITS[quantity][unit]
    if not math.isfinite(bound):
        raise ValueError(f'"{text}": a limit on {quantity} must be a finite number; write {_EXAMPLES[quantity]}')
    return Limit(quantity, name, bound, UNIT[quantity], relative)


def parse_duration(text: str) -> float:
    """Seconds in "90s", "20min", "2h". Raises ValueError."""
    match = re.fullmatch(r"(\d*\.?\d+)\s*(s|sec|m|min|h)", text.strip().lower())
    seconds = float(match.group(1)) * {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}[match.group(2)] if match else 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f'"{text}" is not a duration; write "90s", "20min" or "2h"')
    return seconds


class Contract(Config):
    """What the user asks for. Limits stay as the user wrote them and round-trip; `limits()` gives them parsed.

    confidence: level at which every limit must hold ("95%"). batch: examples per call that latency is measured at.
    spend, ram: what the optimiser itself may use.
    """

    max_drop: str | None = None
    latency: str | None = None
    memory: str | None = None
    size: str | None = None
    energy: str | None = None
    confidence: str = "95%"
    batch: int = 1
    spend: str | None = None
    ram: str | None = None

    @field_validator("max_drop", "latency", "memory", "size", "energy")
    @classmethod
    def _check_limit(cls, text: str | None, info: object) -> str | None:
        if text is not None:
            parse_limit(info.field_name, text)  # type: ignore[attr-defined]
        return text

    @field_validator("spend")
    @classmethod
    def _check_spend(cls, text: str | None) -> str | None:
        if text is not None:
            parse_duration(text)
        return text

    @field_validator("ram")
    @classmethod
    def _check_ram(cls, text: str | None) -> str | None:
        if text is not None and parse_limit("memory", text).relative:
            raise ValueError(f'"{text}" is not an amount of memory; write "4GB"')
        return text

    @field_validator("confidence")
    @classmethod
    def _check_confidence(cls, text: str) -> str:
        match = re.fullmatch(r"(\d+\.?\d*)\s*%", text.strip())
        if match is None or not 50 <= float(match.group(1)) < 100:
            raise ValueError(f'"{text}" is not a confidence; write a percentage from 50% up to (not including) 100%, such as "95%"')
        return text

    @field_validator("batch")
    @classmethod
    def _check_batch(cls, batch: int) -> int:
        if batch < 1:
            raise ValueError("a batch holds at least one example")
        return batch

    @model_validator(mode="after")
    def _check_any(self) -> Contract:
        if not self.limits():
            raise ValueError('a contract needs at least one limit, for example --max-drop 1% --latency "2x"')
        return self

    def limits(self) -> list[Limit]:
        """The limits that were set, accuracy first."""
        given = {q: getattr(self, q) for q in ("max_drop", "latency", "memory", "size", "energy")}
        return [parse_limit(q, text) for q, text in given.items() if text is not None]  # type: ignore[arg-type]

    def costs(self) -> list[Limit]:
        """The limits other than that on accuracy."""
        return [limit for limit in self.limits() if limit.quantity != "max_drop"]

    def limit(self, quantity: Quantity) -> Limit | None:
        """The limit on one quantity, if set."""
        return next((one for one in self.limits() if one.quantity == quantity), None)

    @property
    def level(self) -> float:
        """Confidence as a fraction, 0.95."""
        return float(self.confidence.strip().rstrip("%")) / 100

    @property
    def spend_seconds(self) -> float | None:
        """Seconds the optimiser may spend, or None."""
        return parse_duration(self.spend) if self.spend else None

    @property
    def ram_mb(self) -> float | None:
        """MB the optimiser's own processes may use, or None."""
        return parse_limit("memory", self.ram).bound if self.ram else None


class Clause(Config):
    """The verdict on one limit: what was asked, what was found, and a sentence a careful person would sign."""

    limit: str
    status: Literal["met", "not met", "cannot certify"]
    figure: Measurement | None
    original: Measurement | None
    sentence: str


class Verdict(Config):
    """The verdict on a contract. nearest: the command that asks for the nearest feasible point, when infeasible."""

    status: Status
    clauses: tuple[Clause, ...]
    summary: str
    nearest: str | None = None
