"""`lissome sparsify --train` that is killed: python killed_sparsify.py FOLDER. Each life is a process of its own, that runs the same command; prints how each
ended, and at last the model's hash and what its record says."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lissome.cli.main import run as command
from lissome.compress.attention import adapt
from lissome.compress.attention import run as running
from lissome.core.measurement import Measurement
from lissome.machine.identity import identify
from lissome.train import loop
from lissome.train.config import TrainConfig
from tests.compress.attention import worlds

torch.set_num_threads(1)
TASK = "tests.compress.attention.worlds:leaning_task"
TRAINING = ["--train", "--epochs", "3", "--lr", "0.02", "--batch", "20"]  # twelve steps
LIVES: tuple[tuple[Any, str, int], ...] = (
    (running, "profile", 2),  # the heads were watched, and nothing is written down yet
    (running, "scores_of", 2),  # the walk knows the dense model and the first plan
    (loop, "_step", 5),  # between two checkpoints, in the second epoch
    (loop, "_step", 6),  # of this life: the tenth in all, in the third epoch
    (adapt, "save_model", 1),  # trained and saved, but the cache's entry is not in its place
    (running, "record_use", 1),  # the test split is noted to have judged it, and it has not
    (running, "save_model", 1),  # the folder is half written
)
"""What each life dies of: after which call of what."""


def dying(module: Any, name: str, after: int) -> None:
    """Kill -9 this process when `module.name` has been called `after` times."""
    real: Callable[..., Any] = getattr(module, name)
    calls = []

    def last(*arguments: Any, **more: Any) -> Any:
        found = real(*arguments, **more)
        calls.append(1)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(module, name, last)


def life(folder: Path, death: tuple[Any, str, int] | None) -> str:
    """Run the command in `folder` with its own cache; the hash of the weights and what the record says."""
    os.environ["LISSOME_CACHE"] = str(folder / "cache")
    os.chdir(folder)
    said = Measurement("speedup", 2.0, 1.9, 2.1, "x", 9, "measured", identify().fingerprint)
    running.times_faster = lambda *_: said  # the clock is no part of what is compared, and neither is the precision that it would choose
    loop.choose_precision = lambda *_: ("fp32", "said so")
    TrainConfig.due = lambda self, seconds, steps: steps >= 2
    if death:
        dying(*death)
    code = command(["sparsify", "model", "--task", TASK, "--out", "out", "--keep", "90%", *TRAINING])
    record = json.loads(Path("out/sparsify.json").read_text())
    weights = hashlib.sha256(Path("out/model.safetensors").read_bytes()).hexdigest()
    return json.dumps({"code": code, "weights": weights, "record": record}, sort_keys=True)


def lives(folder: Path) -> None:
    """One life that dies of each cause in turn and one that finishes, beside one that never died."""
    for name, deaths in (("killed", (*LIVES, None)), ("whole", (None,))):
        home = folder / name
        worlds.folder(home / "model", near=False)
        for death in deaths:
            child = os.fork()  # after the imports, which take longest
            if not child:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115
                (home / "found.json").write_text(life(home, death))
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        print((home / "found.json").read_text(), flush=True)


if __name__ == "__main__":
    lives(Path(sys.argv[1]))
