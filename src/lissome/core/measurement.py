"""A Measurement is one number with its unit, interval, method and machine; no bare float leaves a measuring function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from lissome.core.errors import Incomparable, MachineMismatch

Method = Literal["measured", "counted", "estimated"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured quantity.

    value, low, high: the figure and the bounds of its interval, in `unit`; `confidence` is the interval's level (0.95).
    n: independent repetitions behind the interval (rounds, examples).
    method: "measured" | "counted" (exact, as bytes in a file) | "estimated" (can never satisfy a contract).
    machine: fingerprint of the machine; comparing two machines raises MachineMismatch.
    """

    # JSON has no infinity: an unbounded end is written as the string "Infinity", which reads back as the number, where null would not.
    __pydantic_config__: ClassVar[ConfigDict] = {"ser_json_inf_nan": "strings"}

    name: str
    value: float
    low: float
    high: float
    unit: str
    n: int
    method: Method
    machine: str
    confidence: float = 0.95

    def __str__(self) -> str:
        tag = " (estimated)" if self.method == "estimated" else ""
        if self.low == self.high:
            return f"{digits(self.value)} {self.unit}{tag}"
        return f"{digits(self.value)} [{digits(self.low)}, {digits(self.high)}] {self.unit}{tag}"


def digits(value: float) -> str:
    """A number with three significant digits, trailing zeros kept ("2.00"), whole from a thousand up ("1,234")."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def counted(name: str, value: float, unit: str, machine: str) -> Measurement:
    """An exact figure: its interval is the figure itself."""
    return Measurement(name, value, value, value, unit, 1, "counted", machine)


def check_comparable(a: Measurement, b: Measurement) -> None:
    """Raise unless `a` and `b` are the same quantity, unit and method from the same machine."""
    if a.machine != b.machine:
        raise MachineMismatch(
            f'"{a.name}" was measured on {a.machine} and "{b.name}" on {b.machine}.',
            expected="two measurements from one machine",
            do="measure both again here, in one run",
        )
    for part in ("name", "unit", "method"):
        if getattr(a, part) != getattr(b, part):
            raise Incomparable(f"cannot compare {a.name} ({a.unit}, {a.method}) with {b.name} ({b.unit}, {b.method}): their {part} differs.")
