"""Quantisation-aware training that is killed: python killed_qat.py FOLDER int8-dynamic|int8-static.

Prints how each life ended and the hash of the final weights and scales.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from lissome.compress.qat import qat
from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QuantizeConfig
from lissome.core.quantization import Quantized
from lissome.nn.load import as_model
from lissome.train.callbacks import KeepBest
from lissome.train.config import TrainConfig
from tests.nn import tiny
from tests.train.killed import Die
from tests.train.small import bits, loader, loss, small

torch.set_num_threads(1)


def run(folder: Path | None, die_at: int, precision: str) -> str:
    return dynamic(folder, die_at) if precision == "int8-dynamic" else static(folder, die_at)


def dynamic(folder: Path | None, die_at: int) -> str:
    """Linear layers; weights and their scales are trained."""
    model = as_model(small())
    start = quantize(model, QuantizeConfig(smallest=1, precision="int8-dynamic"))
    config = TrainConfig(epochs=2, lr=0.01, checkpoint_every=3)
    return everything(qat(model, start, loss, loader(), config, scale_lr=0.01, callbacks=[Die(die_at)], resume=folder))


def static(folder: Path | None, die_at: int) -> str:
    """Convolutions with absorbed norms; scales of activations are trained too, and the best weights so far outlive the kill."""
    batches = [(torch.from_numpy(tiny.images(8, i)["images"]), torch.arange(8) % 4) for i in range(6)]

    def cross_entropy(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(module(batch[0]), batch[1])

    best = KeepBest(lambda module: -float(cross_entropy(module, (batches[0][0].flip(3), batches[0][1]))), every=2)
    model = as_model(tiny.cnn())
    start = quantize(model, QuantizeConfig(smallest=1), batches)
    config = TrainConfig(epochs=2, lr=0.01, checkpoint_every=3)
    return everything(qat(model, start, cross_entropy, batches, config, scale_lr=0.01, callbacks=[best, Die(die_at)], resume=folder))


def everything(quantized: Quantized) -> str:
    """A hash of every byte of weights and scales."""
    scales = quantized.scales.arrays()
    total = hashlib.sha256(bits(quantized.model.module).encode())
    for name in sorted(scales):
        total.update(name.encode() + scales[name].tobytes())
    return total.hexdigest()


def lives(folder: Path, precision: str) -> None:
    """Two lives that end by kill -9 and one that finishes."""
    for die_at in (5, 10, 0):
        child = os.fork()  # after the imports, which take longest
        if not child:
            print(run(folder, die_at, precision), flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    lives(Path(sys.argv[1]), sys.argv[2])
