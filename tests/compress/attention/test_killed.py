"""`lissome sparsify --train`, killed in every stage, ends with what it would have ended with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEATHS = 7


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_in_every_stage_then_the_same_command_gives_the_same_model_and_record(tmp_path):
    root = Path(__file__).parents[3]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command = [sys.executable, str(Path(__file__).parent / "killed_sparsify.py"), str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    *ends, killed, unharmed, whole = found.stdout.splitlines() or [""] * 3
    assert [int(end) for end in ends] == [-signal.SIGKILL.value] * DEATHS + [0], found.stderr
    assert (unharmed, killed) == ("0", whole), found.stderr
    result = json.loads(whole)
    assert (result["code"], result["record"]["status"], result["record"]["trained"]) == (0, "met", True)
    assert "seen once" in result["record"]["sentence"]
