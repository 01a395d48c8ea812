"""`lissome experts` and `split-experts` from the command line, on a tiny Llama with a tokenizer of its own."""

import json
from pathlib import Path

import pytest

from lissome.cli.main import run
from lissome.data.vocabulary import train_tokenizer
from tests.compress.experts.test_split import llama

WORDS = {"code": "def function(self): return self.value + 1\n", "law": "The licensee shall not, without prior written consent, assign this licence.\n"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("model")
    for name, words in WORDS.items():
        (place / name).mkdir()
        for at in range(8):
            (place / name / f"{at}.txt").write_text(words * 40)
    llama(vocab_size=300).save_pretrained(place / "dense")
    train_tokenizer(WORDS.values(), 300).save(str(place / "dense" / "tokenizer.json"))
    return place


def test_split_then_experts(folder, capsys, monkeypatch):
    monkeypatch.setattr("lissome.compress.experts.run.domain_texts", lambda **_: {name: [words * 40] * 6 for name, words in WORDS.items()})
    monkeypatch.setattr("lissome.compress.experts.run.LENGTH", 32)
    assert run(["split-experts", str(folder / "dense"), "--experts", "8", "--active", "2", "--out", str(folder / "split")]) == 0
    said = capsys.readouterr().out
    assert "model.layers.1.mlp" in said and "Neurons that a token reads  25.0%" in said
    domains = [part for name in WORDS for part in ("--domain", f"{name}={folder / name}")]
    shape = ["--windows", "4", "--length", "32"]
    assert run(["experts", str(folder / "split"), *domains, *shape]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "max/mean load" in said and "whole windows were permuted, which share no document" in said and "allowing for all 2 layers" in said and "code" in said
    assert run(["experts", str(folder / "split"), *domains, *shape, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["layers"]) == 2 and set(told["layers"][0]["shares"]) == set(WORDS) and told["windows"] == {"code": 4, "law": 4}


def test_bad_input(folder, capsys):
    def refused(*arguments: str) -> str:
        assert run([*arguments]) == 2
        return capsys.readouterr().err

    dense, out = str(folder / "dense"), str(folder / "none")
    assert "has no experts: all of its feed-forward networks are dense" in refused("experts", dense)
    assert "5 active experts of 4" in refused("split-experts", dense, "--experts", "4", "--active", "5", "--out", out)
    assert "cannot be divided among 3 experts" in refused("split-experts", dense, "--experts", "3", "--active", "1", "--out", out)
    assert '"law" is no domain' in refused("experts", dense, "--domain", "law")
    assert "one domain cannot be compared" in refused("experts", dense, "--domain", f"law={folder / 'law'}")


def test_a_model_is_looked_at_on_other_texts_than_it_was_split_on(folder, monkeypatch):
    asked = []

    def texts(**given: object) -> dict[str, list[str]]:
        asked.append(given["half"])
        return {name: [words * 40] * 6 for name, words in WORDS.items()}

    monkeypatch.setattr("lissome.compress.experts.run.domain_texts", texts)
    monkeypatch.setattr("lissome.data.domains.domain_texts", texts)
    monkeypatch.setattr("lissome.compress.experts.run.LENGTH", 32)
    out = str(folder / "apart")
    assert run(["split-experts", str(folder / "dense"), "--experts", "4", "--active", "2", "--out", out]) == 0
    assert run(["experts", out, "--windows", "4", "--length", "32"]) == 0
    assert asked == ["even", "odd"]
