"""Ctrl-C in a stream: a real SIGINT to a child on a terminal of its own. The text so far stands, the terminal is as it was, the exit code is 130."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

from tests.nn.decoder.small import as_gguf, llama

CHILD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs hand down that it is ignored
from lissome.engines.decoding import text
drawn = text._drawn
def slowly(*given):  # a model so small ends before anybody could press a key
    time.sleep(0.02)
    return drawn(*given)
text._drawn = slowly
from lissome.cli.main import run
sys.exit(run(sys.argv[1:]))
"""
PATIENCE_S = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return str(as_gguf(llama(), path, **{"tokenizer.ggml.eos_token_id": 0}))


def until(fd: int, ready, child) -> bytes:
    """What the child has written once `ready` holds of it."""
    found, begun = b"", time.monotonic()
    while not ready(found):
        assert time.monotonic() - begun < PATIENCE_S, found
        if select.select([fd], [], [], 1.0)[0]:
            try:
                found += os.read(fd, 4096)
            except OSError:  # the terminal's other end is closed
                break
        elif child.poll() is not None:
            break
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="needs terminals as Unix has them")
def test_the_text_stands_and_the_terminal_is_as_it_was(model):
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    words = [sys.executable, "-c", CHILD, "generate", model, "--prompt", "the man", "--max-tokens", "4000", "--context", "64", "--slide", "--threads", "1"]
    child = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    try:
        text = until(ours, lambda found: len(found) > 40, child)
        os.kill(child.pid, signal.SIGINT)
        text += until(ours, lambda found: b"stands" in found, child)
        assert child.wait(PATIENCE_S) == 130
        assert termios.tcgetattr(theirs) == before
    finally:
        child.kill()
        os.close(theirs)
        os.close(ours)
    body, _, message = text.rpartition(b"\r\nInterrupted after ")
    assert len(body) > 40 and b"tokens; the text so far stands" in message and b"Traceback" not in text


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals as Unix has them")
def test_json_has_the_text_so_far(model):
    words = [sys.executable, "-c", CHILD.replace("time.sleep(0.02)", "print('.', end='', file=sys.stderr, flush=True); time.sleep(0.02)")]
    words += ["generate", model, "--prompt", "the", "--max-tokens", "4000", "--context", "64", "--slide", "--threads", "1", "--json"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stderr is not None
    until(child.stderr.fileno(), lambda found: found.count(b".") >= 3, child)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=PATIENCE_S)
    found = json.loads(out)
    assert child.returncode == 130 and found["error"]["kind"] == "Interrupted"
    assert found["reason"] == "interrupted" and found["tokens"] >= 1 and isinstance(found["text"], str)
