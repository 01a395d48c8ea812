from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.parallel import run


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__).parent / "parallel.py"), str(tmp_path / "weights.safetensors")]
    lives = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "PYTHONPATH": os.pathsep.join(sys.path), "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    errors = [life.communicate(timeout=120)[1].decode() for life in lives]
    assert [life.returncode for life in lives] == [0, 0], errors
    found, alone = load_file(tmp_path / "weights.safetensors"), run(1, None).state_dict()
    for name, tensor in alone.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000006"]
