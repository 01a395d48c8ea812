"""A small real problem: two noisy classes in a table, and a network that tells them apart."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lissome.core.contract import Contract
from lissome.engines import measure, torch_eager
from lissome.engines.table import ENGINES
from lissome.optimize import shrink, tables, verify
from lissome.optimize.run import Optimized, optimize

MODEL = '''
import torch
from torch import nn


def build(seed: int = 0, width: int = 160) -> nn.Module:
    """A trained-looking network: random features of the first columns' sum, read out by least squares.

    Solved in double and rounded, so that every call gives the same bits: LAPACK's own depend on where memory lies.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)).double()
    x = torch.randn(4000, 6, dtype=torch.double)
    y = nn.functional.one_hot((x[:, 0] + x[:, 1] > 0).long(), 2).double()
    with torch.no_grad():
        hidden = torch.cat([net[:4](x), torch.ones(4000, 1)], dim=1)
        solved = torch.linalg.lstsq(hidden, y).solution.mul(1024).round().div(1024)
        net[4].weight.copy_(solved[:-1].T)
        net[4].bias.copy_(solved[-1])
    return net.float()


def outlier() -> nn.Module:
    """The same with one loud hidden unit that nothing reads: it stretches the range of what goes into the second layer."""
    net = build()
    with torch.no_grad():
        net[0].bias[7] = 300.0
        net[2].weight[:, 7] = 0.0
    return net


def three() -> nn.Module:
    return nn.Linear(6, 3)


def broken() -> nn.Module:
    net = build()
    with torch.no_grad():
        net[2].weight[0, 0] = float("nan")
    return net


def conditional() -> nn.Module:
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build()

        def forward(self, x):
            if x.sum() > 0:
                return self.net(x)
            return self.net(x) * 1.0

    return Branches()
'''

TASK = """
kind: tabular
data: rows.csv
label: side
fractions: {train: 0.3, calibration: 0.1, validation: 0.2, test: 0.4}
"""


@pytest.fixture(scope="session")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny_model.py, rows.csv and task.yaml."""
    folder = tmp_path_factory.mktemp("problem")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 6))
    side = np.where(x[:, 0] + x[:, 1] + 0.2 * rng.normal(size=3000) > 0, "right", "left")
    lines = ["a,b,c,d,e,f,side", *(",".join([*(f"{v:.4f}" for v in row), str(label)]) for row, label in zip(x, side, strict=True))]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    (folder / "task.yaml").write_text(TASK)
    (folder / "tiny_model.py").write_text(MODEL)
    return folder


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests: what one learned, the next reuses."""
    return tmp_path_factory.mktemp("cache")


def quick(patch: pytest.MonkeyPatch, problem: Path, cache_folder: Path) -> None:
    """The problem's folder importable, only the two quickest engines, in float32 and int8, and short measuring: no test reads a time."""
    patch.setenv("LISSOME_CACHE", str(cache_folder))
    patch.setattr(sys, "path", [str(problem), *sys.path])
    for name in ("torch.compile", "openvino"):
        patch.delitem(ENGINES, name)
    patch.setattr(torch_eager, "has_bf16", lambda isa: False)
    patch.setattr(measure, "SLICE_S", 0.005)
    patch.setattr(tables, "ROUNDS", 6)
    patch.setattr(verify, "ROUNDS", 7)
    patch.setattr(verify, "NEAR_ROUNDS", 7)
    patch.setattr(shrink, "CHECK_ROUNDS", 7)


@pytest.fixture
def here(problem: Path, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made quick, in an empty working folder; the folder of the problem."""
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch, problem, cache_folder)
    return problem


@pytest.fixture(scope="module")
def met(problem: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Optimized:
    """One finished optimisation whose contract is met; whoever changes its folder works on a copy."""
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, problem, cache_folder)
        return optimize("tiny_model:build", str(problem / "task.yaml"), Contract(max_drop="3%", size="2x"), out=tmp_path_factory.mktemp("met") / "artifact")
