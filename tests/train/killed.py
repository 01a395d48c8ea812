"""Runs that are killed: python killed.py FOLDER plain|own. Each life is a process of its own; prints how each ended and the hash of the final weights."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from lissome.train.batches import Batches
from lissome.train.callbacks import Callback, KeepBest, Run
from lissome.train.config import TrainConfig
from lissome.train.finetune import classification_loss, score_of
from lissome.train.loop import train
from tests.train.small import bits, loader, loss, number_task, small

torch.set_num_threads(1)


class Die(Callback):
    """Kill -9 this process after a step, as the kernel does when memory is short."""

    def __init__(self, step: int):
        self.at = step

    def on_step(self, run: Run) -> None:
        if run.step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path | None, die_at: int, plain: bool) -> str:
    module, task = small(), number_task()
    batches = loader() if plain else Batches(task, "train", 4)
    best = KeepBest(lambda trained: score_of(trained, task), every=5)
    config = TrainConfig(epochs=3, lr=0.05, accumulation=2, precision="fp32", checkpoint_every=3)
    train(module, batches, loss if plain else classification_loss(), config, callbacks=[best, Die(die_at)], resume=folder)
    return bits(module)


def lives(folder: Path, plain: bool) -> None:
    """Two lives that end by kill -9 (the second starts from step 3, between two evaluations, in the middle of an epoch) and one that finishes."""
    for die_at in (5, 9, 0):
        child = os.fork()  # after the imports, which take longest
        if not child:
            print(run(folder, die_at, plain), flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    lives(Path(sys.argv[1]), sys.argv[2] == "plain")
