"""One of several processes that train together; the main one writes its weights: python parallel.py FILE, under the variables of a launcher."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from lissome.train.config import TrainConfig
from lissome.train.loop import train
from tests.train.small import data, loss
from tests.train.test_loop import plain

torch.set_num_threads(1)


def run(processes: int, folder: Path | None) -> torch.nn.Module:
    """Twice the processes, half the accumulation: the same steps."""
    x, y = data(20)
    sizes = (5, 3, 2, 6, 1, 3)  # the last group of an epoch is short
    module = plain()
    config = TrainConfig(epochs=3, lr=0.1, optimizer="sgd", precision="fp32", accumulation=4 // processes)
    train(module, list(zip(x.split(sizes), y.split(sizes), strict=True)), loss, config, resume=folder)
    return module


if __name__ == "__main__":
    import os

    module = run(2, Path(sys.argv[1]).parent / "checkpoints")
    if os.environ["RANK"] == "0":
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, sys.argv[1])
