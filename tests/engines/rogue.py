"""Factories that misbehave in the measured process, and the forms that name them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import nn

from lissome.core.trust import name_target


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((24,), 2.0))

    def forward(self, features):
        return features * self.weight


class Noisy(Doubled):
    def forward(self, features):
        print("forward says hello")
        os.write(1, b'{"ms": [0.0]}\n')
        return super().forward(features)


class Stuck(Doubled):
    """Starts a process of its own (its id goes to the file named in ROGUE_CHILD) and never answers."""

    def forward(self, features):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(os.environ["ROGUE_CHILD"]).write_text(str(child.pid))
        time.sleep(600)
        return features


def noisy() -> nn.Module:
    print("a library prints its banner")
    subprocess.run(["echo", "and so does its child"], check=True)
    return Noisy()


def stuck() -> nn.Module:
    return Stuck()


def dies() -> nn.Module:
    print("last words", file=sys.stderr, flush=True)
    os._exit(7)


def killed() -> nn.Module:
    os.kill(os.getpid(), signal.SIGKILL)
    return Doubled()


def closes_its_end() -> nn.Module:
    os.closerange(3, 64)  # the answers' descriptor among them
    time.sleep(600)
    return Doubled()


def form(folder: Path, name: str) -> Path:
    """A torch form that is built by one of these factories."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(Doubled(), str(folder / "model.safetensors"))
    target = f"tests.engines.rogue:{name}"
    name_target(target)
    (folder / "architecture.json").write_text(json.dumps({"kind": "factory", "target": target}))
    (folder / "form.json").write_text(json.dumps({"engine": "torch", "file": "model.safetensors", "inputs": ["features"], "dims": {}, "layers": {}}))
    return folder
