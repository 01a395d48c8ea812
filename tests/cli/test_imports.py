"""Importing lissome is light: neither torch nor an engine, and quick because of it."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "onnxruntime", "openvino", "pandas", "sklearn", "accelerate")


def loaded_by(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*[m for m in {HEAVY} if m in sys.modules])"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())


def test_import_lissome_loads_nothing_heavy():
    assert loaded_by("import lissome, lissome.cli.main; lissome.Contract(max_drop='1%'); lissome.cli.main._register()") == set()


def test_the_measured_process_starts_without_torch():
    assert loaded_by("import lissome.engines.worker, lissome.engines.ort, lissome.engines.openvino") == set()


def test_every_public_name_can_be_had():
    script = "import lissome\nfor name in lissome.__all__: getattr(lissome, name)"
    subprocess.run([sys.executable, "-c", script], check=True)
