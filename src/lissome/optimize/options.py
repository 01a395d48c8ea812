"""The options: every engine x precision that this machine supports, and the padding policies worth trying for the fast ones."""

from __future__ import annotations

from collections.abc import Sequence

from lissome.core.manifest import MachineInfo, Option, Tried
from lissome.core.task import Padding, Task
from lissome.engines.table import ENGINES, PRECISIONS, engine
from lissome.machine.identity import saturates

ORIGINAL = Option(engine="torch", precision="fp32", padding="longest")
"""What the user runs today: torch, called, in float32. Every ratio is against this."""

_COST = {"onnxruntime": 0, "openvino": 1, "torch": 2, "torch.compile": 3}
"""Order of work when time is short: engines whose forms take seconds before the one that compiles for a minute."""


def whole_model_options(machine: MachineInfo) -> tuple[list[Option], list[Tried]]:
    """Options to try, cheapest to build first, and those skipped with the reason. The original is not among them."""
    tried, skipped = [], []
    for name in sorted(ENGINES, key=lambda n: _COST[n]):
        support = engine(name).support(machine.isa)
        for precision in PRECISIONS:
            option = Option(engine=name, precision=precision)  # type: ignore[arg-type]
            if option == ORIGINAL:
                continue
            if precision in support.precisions:
                tried.append(option)
            else:
                skipped.append(Tried(option=option, outcome="skipped", why=support.why_not(precision)))
    return tried, _merge(skipped)


def _merge(skipped: list[Tried]) -> list[Tried]:
    """One row for an engine that is absent altogether, instead of one per precision."""
    kept, seen = [], set()
    for row in skipped:
        if (row.option.engine, row.why) not in seen:
            seen.add((row.option.engine, row.why))
            kept.append(row)
    return kept


def padded(options: Sequence[Option], task: Task) -> list[Option]:
    """The same options under the other padding policies; none where all examples have one shape."""
    others: tuple[Padding, ...] = ("multiple-of-16", "fixed") if task.variable_length else ()
    return [option.model_copy(update={"padding": padding}) for option in options for padding in others]


def reduce_range(machine: MachineInfo) -> bool:
    """Whether int8 weights must keep to 7 bits on this machine."""
    return saturates(machine.isa)
