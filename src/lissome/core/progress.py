"""Progress: what long work calls, and a silent and a terminal implementation. Output goes to stderr, stdout is for results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol


class Progress(Protocol):
    """What long work reports to.

    stage(text, total): begin a named stage of `total` steps (None when unknown); step(n, note): advance it; say(text): one line.
    """

    def stage(self, text: str, total: int | None = None) -> None:
        """Begin a named stage of `total` steps."""

    def step(self, n: int = 1, note: str = "") -> None:
        """Advance the stage."""

    def say(self, text: str) -> None:
        """Say one line."""


class Silent:
    """Reports nothing; the default of the Python API."""

    def stage(self, text: str, total: int | None = None) -> None:
        """Ignore."""

    def step(self, n: int = 1, note: str = "") -> None:
        """Ignore."""

    def say(self, text: str) -> None:
        """Ignore."""


class Terminal:
    """A rich progress bar with an estimate of the time left on stderr; plain lines where stderr is not a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.console = Console(stderr=True, highlight=False)
        self.bars = Bars(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self.task: int | None = None
        self.text, self.begun = "", 0.0

    def stage(self, text: str, total: int | None = None) -> None:
        """Close the stage before (one line with its duration) and open the next."""
        self.close()
        self.text, self.begun = text, time.perf_counter()
        if self.console.is_terminal:
            self.bars.start()
            self.task = self.bars.add_task(text, total=total, note="")
        else:
            self.console.print(f"... {text}")

    def step(self, n: int = 1, note: str = "") -> None:
        """Advance the open stage."""
        if self.task is not None:
            self.bars.update(self.task, advance=n, note=note)  # type: ignore[arg-type]

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        self.console.print(text, markup=False)

    def close(self) -> None:
        """End the open stage, if any."""
        if self.task is not None:
            self.bars.remove_task(self.task)  # type: ignore[arg-type]
            self.bars.stop()
            self.task = None
        if self.text:
            self.console.print(f"[dim]{time.perf_counter() - self.begun:6.1f} s[/]  {self.text}")
            self.text = ""


@contextlib.contextmanager
def terminal() -> Iterator[Terminal]:
    """A Terminal that is closed on the way out, whatever happens."""
    shown = Terminal()
    try:
        yield shown
    finally:
        shown.close()
