"""The parent's end of a measured process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lissome.core.cache import disk_errors
from lissome.core.errors import EnvironmentLacks, LissomeError
from lissome.engines.safety import VOUCHED, check_form
from lissome.machine.memory import peak_rss

if TYPE_CHECKING:
    import numpy as np

    Batches = Sequence[Mapping[str, np.ndarray]]


GRACE_S = 5.0
"""How long a process may take to end by itself before it is ended."""


class EngineFailed(LissomeError):
    """An engine could not load or run a form; the message is the engine's own."""

    exit_code = 4


class Process:
    """One engine in a process of its own; a context manager that leaves nothing running.

    spawned: seconds on the clock when it was started; `cold_start_s` counts from there to the first outputs.
    """

    def __init__(self, threads: int):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            VOUCHED: "1",  # `load` checks every form here, where it is known what the user named
            "PYTHONPATH": os.pathsep.join(p for p in [str(Path.cwd()), *sys.path] if p),
        }
        self.threads = threads
        self.spawned = time.perf_counter()
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lissome.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            encoding="utf-8",
            start_new_session=True,  # its own group, so that whatever a compiler starts inside it can be ended with it
        )
        self.cold_start_s = 0.0

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer. Raises EngineFailed with the engine's reason."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineFailed(f"the engine's process died during `{do}`: {self._last_words()}")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as error:  # cut off by its end, or printed before it began to listen
            raise EngineFailed(f"the engine's process gave no proper answer to `{do}`: {line[:100].strip()!r}") from error
        if "error" in answer:
            if "No space left" in answer["error"]:
                raise EnvironmentLacks("no disk space left while the engine ran", do="free some space (`lissome cache clear` frees lissome's own)")
            raise EngineFailed(_one_line(answer["error"]))
        return answer

    def load(self, engine: str, form: Path, precision: str, batches: Path, shapes: Mapping[str, Sequence[int]] | None, probes: bool = False) -> dict[str, Any]:
        """Load a form and run its first batch; the answer has load_s, first_s and describe. Raises BadArtifact for a form that must not be loaded."""
        check_form(form)
        answer = self.ask("load", engine=engine, form=str(form), precision=precision, threads=self.threads, batches=str(batches), shapes=shapes, probes=probes)
        self.cold_start_s = time.perf_counter() - self.spawned
        return answer

    def peak_mb(self, machine: str) -> float:
        """Peak resident memory so far, MB."""
        return peak_rss(machine, self.process.pid).value

    def close(self) -> None:
        """End the process and wait for it."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it died before; there is nothing left to tell it
                self.process.stdin.close()
        try:
            self.process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            self._kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.errors.close()

    def _kill(self) -> None:
        """End the process and what it started, at once."""
        if hasattr(os, "killpg"):
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()

    def _last_words(self) -> str:
        """What it said last and how it ended."""
        try:
            code = self.process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:  # it closed its end and lives on: of no use any more
            self._kill()
            code = self.process.returncode
        self.errors.seek(0)
        lines = [line for line in self.errors.read().decode(errors="replace").splitlines() if line.strip()]
        return f"{lines[-1][:300] if lines else 'no message'} ({_ending(code)})"


def write_batches(batches: Batches, path: Path) -> Path:
    """Batches as an .npz that the measured process reads."""
    import numpy as np

    named: dict[str, Any] = {f"{i:04d}/{name}": array for i, batch in enumerate(batches) for name, array in batch.items()}
    with disk_errors("batches for the measured process", path):
        np.savez(path, **named)
    return path


def _ending(code: int) -> str:
    """An exit code in words; killed processes have the negative number of their signal."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"ended by {name}{', usually for lack of memory' if name == 'SIGKILL' else ''}"


def _one_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0][:400] if lines else "no message"
