from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lissome.engines import torch_compiled
from lissome.machine import compiler as module
from lissome.machine.compiler import compiler
from lissome.machine.probe import find_compiler

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="writes shell scripts")
USED = "from torch._inductor.cpp_builder import get_cpp_compiler as used\ntry:\n    print(used())\nexcept Exception as e:\n    print(type(e).__name__)"


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """A PATH with nothing on it, and no $CXX."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def program(folder: Path, name: str) -> str:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)
    return str(folder / name)


@pytest.mark.parametrize(("system", "name"), [("linux", "g++"), ("darwin", "clang++")])
def test_the_systems_own_and_no_other(programs, monkeypatch, system, name):
    monkeypatch.setattr(module.sys, "platform", system)
    other = {"g++": "clang++", "clang++": "g++"}[name]
    program(programs, other)
    assert compiler() is None
    assert find_compiler().path is None
    own = program(programs, name)
    assert compiler() == own == find_compiler().path


def test_cxx_comes_first_and_stands_alone(programs, monkeypatch):
    program(programs, "g++")
    mine = program(programs, "mine")
    monkeypatch.setenv("CXX", "mine")
    assert compiler() == mine == find_compiler().path
    monkeypatch.setenv("CXX", "mistyped")
    assert compiler() is None
    assert find_compiler().path is None


def test_the_probe_and_the_engine_ask_one_function():
    assert torch_compiled.compiler is compiler


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux")
@pytest.mark.parametrize(("there", "cxx"), [((), None), (("clang++",), None), (("g++",), None), (("g++",), "mistyped"), (("clang++",), "clang++")])
def test_torch_agrees(programs, monkeypatch, there, cxx):
    """Inductor itself, in a fresh process because it reads $CXX when it is imported."""
    for name in there:
        program(programs, name)
    if cxx:
        monkeypatch.setenv("CXX", cxx)
    used = subprocess.run([sys.executable, "-c", USED], env=dict(os.environ), capture_output=True, text=True, check=True).stdout.strip()
    assert (compiler() is None) == (used == "InvalidCxxCompiler"), used
    assert compiler() is None or Path(compiler()).name == used
