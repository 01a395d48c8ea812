"""`build` and `swap` from the command line."""

from __future__ import annotations

import json

import pytest
import yaml

from lissome.cli.main import run
from tests.nn.models.small import decoder


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(decoder().model_dump(mode="json"), sort_keys=False))
    return str(path)


def test_parts_and_parameters_are_printed(file, tmp_path, capsys):
    assert run(["build", file, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "blocks 0-2 ffn" in said and "gated(inner=64" in said and "parameters" in said
    head = "topic={kind: classification, classes: 4}"
    words = ["swap", str(tmp_path / "a"), "--attention", "{kind: sparse, pattern: 'window(8)'}", "--ffn", "relu2", "--head", head, "--layers", "1,2"]
    assert run([*words, "--out", str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new"] == ["heads.topic.linear.weight", "heads.topic.linear.bias"]
    assert found["left"] == ["trunk.blocks.1.ffn.gate_proj.weight", "trunk.blocks.2.ffn.gate_proj.weight"]
    assert found["parameters"] == sum(part["parameters"] for part in found["parts"])
    assert run(["swap", str(tmp_path / "b"), "--remove-head", "lm", "--out", str(tmp_path / "c")]) == 0
    assert "New, with fresh weights: nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["build", "mobil"], 'there is no preset "mobil". Did you mean "mobile"?'),
        (["build", "nowhere.yaml"], "cannot read it"),
        (["swap", "MODEL", "--ffn", "gatde"], 'there is no ffn called "gatde". Did you mean "gated"?'),
        (["swap", "MODEL", "--ffn", "{kind: ["], "is not YAML"),
        (["swap", "MODEL", "--ffn", "3"], '--ffn: "3" is no part'),
        (["swap", "MODEL", "--attention", "{kind: full, heads: 5}"], "5 heads do not divide the width 32"),
        (["swap", "MODEL", "--head", "topic"], '--head: "topic" names no part'),
        (["swap", "MODEL", "--remove-head", "topic"], 'the model has no head "topic"'),
        (["swap", "MODEL", "--ffn", "relu2", "--layers", "1;2"], '--layers: "1;2" is no list of blocks'),
        (["swap", "MODEL", "--ffn", "relu2", "--layers", "7"], "there is no block 7"),
        (["swap", "MODEL"], "there is nothing to swap"),
    ],
)
def test_what_is_wrong_is_said(file, tmp_path, capsys, words, says):
    if "MODEL" in words:
        assert run(["build", file, "--out", str(tmp_path / "model")]) == 0
    given = [str(tmp_path / "model") if word == "MODEL" else word for word in words]
    assert run([*given, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
