import json

import pytest

from lissome.cli.main import run
from lissome.kernels.library import library
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


def test_a_full_room_is_said_and_a_text_can_slide(model, capsys):
    words = ["generate", model, "--prompt", "the man", "--max-tokens", "12", "--context", "8", "--seed", "1", "--temperature", "2"]
    assert run(words) == 0
    assert "The room for 8 tokens is used up" in capsys.readouterr().err
    assert run([*words, "--slide", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 12
    assert run(["generate", model, "--prompt", "a" * 40, "--context", "8", "--max-tokens", "1", "--slide"]) == 0


@pytest.mark.skipif(library().handle is None, reason="no native kernels")
def test_a_budget_is_announced_and_compared(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path))
    words = ["--memory-budget", "1000GB", "--threads", "1"]
    assert run(["generate", model, "--prompt", "the man", "--max-tokens", "5", *words]) == 0
    within = capsys.readouterr()
    assert "Budget 1,000,000 MB: process" in within.err and "s (estimated) a token" in within.err
    assert run(["generate", model, "--prompt", "the man", "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out == within.out
    assert run(["bench-decode", model, "--prompt-tokens", "8", "--tokens", "2", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["predicted_s_per_token"]["method"] == "estimated" and found["s_per_token"]["n"] == 7 and found["memory"]["unit"] == "MB"


def test_no_disk_space_while_packing(model, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "decoder.json").write_text("{}")
    (tmp_path / "full" / "decoder.safetensors").symlink_to("/dev/full")
    assert run(["pack", model, "--out", str(tmp_path / "full")]) == 4
    assert "no disk space left while writing the decoder" in capsys.readouterr().err


def test_files_that_cannot_be_read(model, tmp_path, monkeypatch, capsys):
    assert run(["pack", model, "--out", str(tmp_path / "m")]) == 0

    def refused(path, *given, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", refused)
    for named in (model, str(tmp_path / "m")):
        assert run(["generate", named, "--prompt", "a"]) == 2
        assert "it cannot be read: Permission denied" in capsys.readouterr().err
    monkeypatch.undo()
    (tmp_path / "m" / "tokenizer.json").unlink()
    assert run(["generate", str(tmp_path / "m"), "--prompt", "a"]) == 2
    assert "its tokenizer cannot be read" in capsys.readouterr().err
