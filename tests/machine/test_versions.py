from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata

from lissome.machine.versions import installed, versions
from lissome.version import VERSION


def test_versions_of_what_is_installed():
    found = versions()
    assert found["lissome"] == VERSION
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")


def test_what_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr("lissome.machine.versions._INFLUENTIAL", ("numpy", "no-such-package-at-all"))
    assert set(versions()) == {"lissome", "python", "numpy"}
    assert installed("no-such-package-at-all") is None


def test_nothing_is_imported():
    code = "import sys; from lissome.machine.versions import versions; versions(); print([m for m in ('torch', 'numpy', 'onnxruntime') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
