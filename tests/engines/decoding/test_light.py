"""What runs a decoder loads no framework: a packed folder and a GGUF file are written, read and measured in a process without torch."""

import os
import subprocess
import sys

import pytest

from lissome.engines.decoding.engine import pack_gguf
from lissome.kernels.library import library
from tests.nn.decoder.small import as_gguf, llama

CHILD = """
import sys
from lissome.cli.main import run
file, folder = sys.argv[1:]
drawn = ["--temperature", "1", "--top-k", "40", "--top-p", "0.9", "--min-p", "0.01", "--repetition-penalty", "1.1"]
for words in (
    ["generate", folder, "--prompt", "the man", "--max-tokens", "4"],
    ["generate", file, "--prompt", "the man", "--max-tokens", "4", *drawn],
    ["generate", folder, "--prompt", "the man", "--max-tokens", "6", "--draft-layers", "1", "--context", "8", "--slide"],
    ["chat", folder, "--message", "hi", "--message", "and", "--max-tokens", "3"],
    ["bench-decode", folder, "--prompt-tokens", "4", "--tokens", "2", "--rounds", "6"],
    *([["generate", folder, "--prompt", "the man", "--max-tokens", "2", "--memory-budget", "100GB"]] if sys.platform.startswith("linux") else []),
):
    assert run([*words, "--threads", "1"]) == 0, words
from lissome.engines.decoding.engine import Batch, open_engine
import numpy as np
assert open_engine(file, threads=1).step(Batch(np.array([1]), np.array([0]), np.array([0]), np.array([0]))).dtype == np.float32
heavy = [name for name in ("torch", "transformers", "safetensors", "scipy", "pandas", "accelerate") if name in sys.modules]
assert not heavy, heavy
"""


@pytest.mark.skipif(library().handle is None, reason="without the kernels torch computes")
def test_generating_chatting_and_measuring_load_no_framework(tmp_path):
    file = as_gguf(llama(), tmp_path / "m.gguf")
    pack_gguf(file, tmp_path / "m")
    words = [sys.executable, "-c", CHILD, str(file), str(tmp_path / "m")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "LISSOME_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
