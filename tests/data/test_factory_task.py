"""Tasks from the user's own code."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from lissome.core.errors import BadTask
from lissome.data import load_task

GOOD = """
import numpy as np
from lissome.core.task import Split, Task, correct

def make(targets=(0, 1), **changes):
    splits = {name: Split([np.zeros(2)] * len(targets), np.array(targets)) for name in ("train", "calibration", "validation", "test")}
    values = dict(name="own", kind="own", splits=splits, collate=lambda rows, padding: {"x": np.stack(rows)}, score=correct, fingerprint="f", ref="?")
    return Task(**{**values, **changes})
"""
numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """module(source) writes a new module into the current folder and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def put(source: str) -> str:
        name = f"own_task_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return put


def refused(ref: str, message: str) -> str:
    with pytest.raises(BadTask, match=message) as caught:
        load_task(ref)
    return str(caught.value)


def test_a_function_in_the_current_folder(module) -> None:
    name = module(GOOD)
    task = load_task(f"{name}:make")
    assert task.name == "own"
    assert task.ref == f"{name}:make"


def test_the_models_folder_is_passed_on_where_it_is_taken(module, tmp_path: Path) -> None:
    name = module(GOOD + "\ndef made(model_dir):\n    return make(name=str(model_dir))\n")
    assert load_task(f"{name}:made", tmp_path).name == str(tmp_path)


def test_what_can_go_wrong_on_the_way(module) -> None:
    assert "run from the folder" in refused("no_such_module:make", 'there is no module "no_such_module"')
    name = module("import not_installed_here\n")
    refused(f"{name}:make", f'there is no module "not_installed_here", which {name} imports')
    name = module("x = 1\n\nx.y.z\n")
    refused(f"{name}:make", rf"{name}.py:3: importing {name} failed: AttributeError")
    name = module("def make(:\n")
    refused(f"{name}:make", rf"{name}.py:1: importing {name} failed: SyntaxError")
    name = module(GOOD)
    refused(f"{name}:mak", rf'{name} has no function "mak". Did you mean "make"\?')
    name = module("def make():\n    return 1 / 0\n")
    refused(f"{name}:make", rf"{name}.py:2: make\(\) failed: ZeroDivisionError")
    name = module("def make():\n    return 3\n")
    refused(f"{name}:make", r"make\(\) returned int")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("make(splits={})", "the split train is missing"),
        ("make(targets=())", "the train split is empty"),
        ("make(targets=(1, 1))", "all 2 examples of the train split have the class 1"),
        ("make(targets=(0, -1))", "class numbers below 0"),
        ("make(targets=(0, 2), classes=('a', 'b'))", "class numbers up to 2, there are 2 classes"),
        ("make(targets=(0.5, float('nan')))", "targets that are not finite"),
        ("make(targets=((0, 1), (1, 0)))", r"2 inputs and targets of shape \(2, 2\)"),
        ("make(targets=('a', 'b'))", "targets that are not numbers"),
    ],
)
def test_a_task_that_cannot_be_used(module, call: str, message: str) -> None:
    name = module(f"{GOOD}\ndef bad():\n    return {call}\n")
    refused(f"{name}:bad", message)
