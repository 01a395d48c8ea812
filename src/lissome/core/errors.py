"""One exception tree. Every error says what was wrong, where, what was expected and what to do.

Exit codes: 0 done, 2 bad input, 3 contract not met, 4 the environment lacks something, 130 interrupted (state kept).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class LissomeError(Exception):
    """Anything lissome reports to its user; `exit_code` is what the command line leaves with."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, expected: str | None = None, do: str | None = None):
        self.what, self.where, self.expected, self.do = what, where, expected, do
        super().__init__(self.text())

    def text(self) -> str:
        """The whole message, one idea a line."""
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.expected:
            lines.append(f"  Expected: {self.expected}")
        if self.do:
            lines.append(f"  Do this:  {self.do}")
        return "\n".join(lines)


class BadInput(LissomeError):
    """The user gave something that cannot be used."""

    exit_code = 2


class BadConfig(BadInput):
    """A configuration file or value that does not fit its schema."""


class BadModel(BadInput):
    """A model that is missing, unreadable, unsafe to read or numerically broken."""


class BadTensor(BadInput, ValueError):
    """A tensor of a shape, type or content that an operation does not take."""


class BadTask(BadInput):
    """A task whose data cannot be used as it stands."""


class BadArtifact(BadInput):
    """A folder that is not a lissome artifact, or one that was changed after it was written."""


class Incomparable(BadInput):
    """Two measurements that must not be compared."""


class MachineMismatch(Incomparable):
    """Two measurements taken on different machines."""


class ParityFailed(LissomeError):
    """An exported form computes something else than its original."""

    exit_code = 3


class Diverged(BadInput):
    """Training whose loss or gradient became NaN or infinite; the last good weights are kept."""


class ContractNotMet(LissomeError):
    """The limits cannot be met, or were not met on the test split."""

    exit_code = 3


class OutOfTime(LissomeError):
    """The time that may be spent is used up before something could begin."""

    exit_code = 3


class EnvironmentLacks(LissomeError):
    """Something outside lissome is missing: a package, a compiler, disk space, a registry, a counter."""

    exit_code = 4


class MissingExtra(EnvironmentLacks):
    """An optional dependency is not installed; the error names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs the package {package}, which is not installed.", do=f'pip install "lissome[{extra}]"')
        self.package, self.extra = package, extra


class Unreachable(EnvironmentLacks):
    """A registry that does not answer."""


class Interrupted(LissomeError):
    """The user pressed Ctrl-C; what was learned so far is kept. found: what there is of it, for `--json`."""

    exit_code = 130

    def __init__(self, what: str, *, do: str | None = None, found: Mapping[str, Any] | None = None):
        super().__init__(what, do=do)
        self.found = dict(found or {})


def closest(word: str, options: list[str] | tuple[str, ...]) -> str:
    """' Did you mean "x"?' for the nearest option, or an empty string."""
    import difflib

    near = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""
