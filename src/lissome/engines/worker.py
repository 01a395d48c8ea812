"""The measured process: holds one engine and one form, and does what its parent asks, one JSON line at a time.

It imports numpy and the engine and nothing else, so that its memory is the memory a user would need.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from lissome.engines.table import Session

MOST = 1 << 22
"""Numbers of one batch's logits that are kept to compare engines by (16 MB)."""


class State:
    """What the process holds between requests."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.batches: list[dict[str, np.ndarray]] = []

    def loaded(self) -> Session:
        """The session. Raises RuntimeError before `load`."""
        if self.session is None:
            raise RuntimeError("nothing is loaded")
        return self.session


def load(state: State, request: dict[str, Any]) -> dict[str, Any]:
    """Load a form and run its first batch; seconds of each."""
    from lissome.engines.table import Load
    from lissome.engines.table import load as load_form

    state.batches = _read_batches(request["batches"])
    how = Load(request["precision"], request["threads"], request.get("shapes"), request.get("probes", False))
    begun = time.perf_counter()
    state.session = load_form(request["engine"], Path(request["form"]), how)
    loaded = time.perf_counter()
    state.session.run(state.batches[0])
    return {"load_s": loaded - begun, "first_s": time.perf_counter() - loaded, "describe": state.session.describe()}


def warm(state: State, request: dict[str, Any]) -> dict[str, Any]:
    """Run every batch once and write the outputs, one after another, to `to` (.npy): a part of them where they are a language model's logits."""
    import numpy as np

    session = state.loaded()
    np.save(request["to"], np.concatenate([_thinned(session.run(batch)) for batch in state.batches]))
    return {}


def timed(state: State, request: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of each call over whole passes through the batches, after `skip` unrecorded calls, for at least `seconds`."""
    session, clock = state.loaded(), time.perf_counter_ns
    for i in range(request["skip"]):
        session.run(state.batches[i % len(state.batches)])
    taken: list[int] = []
    end = time.perf_counter() + request["seconds"]
    while not taken or time.perf_counter() < end:
        for batch in state.batches:
            begun = clock()
            session.run(batch)
            taken.append(clock() - begun)
    return {"ms": [t / 1e6 for t in taken]}


def outputs(state: State, request: dict[str, Any]) -> dict[str, Any]:
    """Run the batches of a file and write all outputs, one after another, to `to` (.npy)."""
    _write_outputs(state.loaded(), _read_batches(request["batches"]), request["to"])
    return {}


def layers(state: State, request: dict[str, Any]) -> dict[str, Any]:
    """Write the probed layers' values on the first batch to `to` (.npz); return their names in order."""
    import numpy as np

    values = state.loaded().layers(state.batches[0])
    named: dict[str, Any] = {str(i): value for i, value in enumerate(values.values())}
    np.savez(request["to"], **named)
    return {"names": list(values)}


def _write_outputs(session: Session, batches: list[dict[str, np.ndarray]], to: str) -> None:
    import numpy as np

    np.save(to, np.concatenate([session.run(batch) for batch in batches]))


def _thinned(logits: np.ndarray) -> np.ndarray:
    """Evenly spread places of logits [n, length, words], as many as MOST numbers hold; other outputs are far smaller and stay whole.

    Which places depends on the shape alone, so that two engines' outputs can still be compared.
    """
    step = -(-logits.size // MOST)
    return logits[:, ::step].copy() if logits.ndim == 3 and step > 1 else logits


def _read_batches(path: str) -> list[dict[str, np.ndarray]]:
    """Batches from an .npz whose arrays are called "0000/input_ids"."""
    import numpy as np

    found: dict[str, dict[str, Any]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            index, name = key.split("/", 1)
            found.setdefault(index, {})[name] = file[key]
    return [found[index] for index in sorted(found, key=int)]


REQUESTS: dict[str, Callable[[State, dict[str, Any]], dict[str, Any]]] = {"load": load, "warm": warm, "time": timed, "outputs": outputs, "layers": layers}


def main() -> None:
    """Answer requests on stdin until it closes. Whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    state = State()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = REQUESTS[request["do"]](state, request)
        except Exception as error:  # noqa: BLE001  the parent decides what an engine's failure means
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
