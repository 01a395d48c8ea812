import json

import pytest

from lissome.cli.main import run
from tests.nn.decoder.small import as_gguf, llama


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(as_gguf(llama(), tmp_path_factory.mktemp("gguf") / "small.gguf"))


def test_text_is_printed_and_json_says_why_it_ended(model, capsys):
    assert run(["generate", model, "--prompt", "the man", "--max-tokens", "5"]) == 0
    text = capsys.readouterr().out
    assert run(["generate", model, "--prompt", "the man", "--max-tokens", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] + "\n" == text
    assert found["reason"] in ("length", "stop") and 0 <= found["tokens"] <= 5


def test_drafts_leave_the_text_as_it_is(model, capsys):
    words = ["generate", model, "--prompt", "the man", "--max-tokens", "8", "--json"]
    assert run(words) == 0
    plain = json.loads(capsys.readouterr().out)
    assert run([*words, "--draft-layers", "1", "--draft-tokens", "3", "--draft-head", "64"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == plain["text"] and 0 <= found["accepted"] <= found["drafted"]


def test_a_packed_model_chats(model, tmp_path, capsys):
    assert run(["pack", model, "--out", str(tmp_path / "packed")]) == 0
    assert run(["chat", str(tmp_path / "packed"), "--message", "hi", "--message", "and", "--max-tokens", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 3
    assert run(["pack", model, "--out", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_speed_is_printed(model, capsys):
    assert run(["bench-decode", model, "--prompt-tokens", "8", "--tokens", "2", "--rounds", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decode"]["unit"] == "tokens/s" and found["prefill"]["n"] == 6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["generate", "MODEL", "--prompt", ""], "the prompt has 0 tokens"),
        (["generate", "MODEL", "--prompt", "aaaa", "--context", "2"], "the prompt has 4 tokens, and there is room for 2"),
        (["generate", "MODEL", "--prompt", "a", "--top-p", "1.5"], "--top-p"),
        (["generate", "MODEL", "--prompt", "a", "--memory-budget", "lots"], '"lots" is not an amount of memory'),
        (["generate", "MODEL", "--prompt", "a", "--memory-budget", "20MB"], "a memory budget of 20 MB is less than this process takes without a model"),
        (["bench-decode", "MODEL", "--memory-budget", "0.5x"], '"0.5x" is not an amount of memory'),
        (["generate", "MODEL", "--prompt", "a", "--draft-layers", "2"], "2 layers cannot draft for a model of 2"),
        (["generate", "MODEL", "--prompt", "a", "--draft-layers", "1", "--draft-tokens", "9"], "--draft-tokens"),
        (["generate", "nowhere.gguf", "--prompt", "a"], 'no decoder at "nowhere.gguf"'),
        (["bench-decode", "MODEL", "--prompt-tokens", "1000"], "room for 1128 tokens, but positions for 256"),
    ],
)
def test_what_is_wrong_is_said(model, capsys, words, says):
    assert run([model if word == "MODEL" else word for word in words]) == 2
    assert says in capsys.readouterr().err
