"""Parts by name: one line registers one, and what is wrong in a config is said with what exists."""

from __future__ import annotations

import itertools

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lissome.core.errors import BadConfig
from lissome.nn.models import parts
from lissome.nn.models.assembly import assemble
from lissome.nn.models.config import ModelConfig, grouped, model_config, part_of, read_config
from lissome.nn.models.parts import Whole, register
from lissome.nn.models.presets import PRESETS
from tests.nn.models.small import decoder, ids


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_json_and_yaml(name):
    config = PRESETS[name]()
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    assert ModelConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["gated", "dense", "relu2"]), min_size=1, max_size=8))
def test_blocks_alike_are_one_and_come_apart_again(kinds):
    block = decoder().layers()[0]
    layers = [block.model_copy(update={"ffn": part_of("ffn", {"kind": kind, "inner": 8})}) for kind in kinds]
    blocks = grouped(layers)
    config = decoder().model_copy(update={"blocks": blocks})
    assert config.layers() == layers
    assert all(a.model_copy(update={"repeat": 1}) != b.model_copy(update={"repeat": 1}) for a, b in itertools.pairwise(blocks))


def test_one_line_registers_a_part(monkeypatch):
    monkeypatch.setattr(parts, "_KINDS", {role: dict(known) for role, known in parts._KINDS.items()})

    class Doubled(nn.Module):
        def __init__(self, width: int, inner: Whole, times: int = 2):
            super().__init__()
            self.first, self.times = nn.Linear(width, inner), times
            self.second = nn.Linear(inner, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu()) * self.times

    # Annotations are text here, which cannot be looked up within a function.
    Doubled.__init__.__annotations__ = {"width": int, "inner": Whole, "times": int}
    register("ffn", "doubled", Doubled)
    config = decoder(blocks=[{"attention": {"kind": "full", "heads": 4}, "ffn": {"kind": "doubled", "inner": 5}}])
    assert config.blocks[0].ffn.options == {"inner": 5, "times": 2}
    assert assemble(config)(ids()).shape == (2, 20, 99)
    with pytest.raises(BadConfig, match='already another ffn called "doubled"'):
        register("ffn", "doubled", nn.Linear)
    with pytest.raises(BadConfig, match=r'no role "fnn" in a model. Did you mean "ffn"'):
        register("fnn", "doubled", nn.Linear)


@pytest.mark.parametrize(
    ("role", "value", "says"),
    [
        ("ffn", "gatde", 'there is no ffn called "gatde". Did you mean "gated"? There are dense, gated, relu2'),
        ("ffn", {"kind": "gated", "iner": 4}, 'the ffn "gated" has no option "iner". Did you mean "inner"? It has inner, activation, bias'),
        ("ffn", "gated", 'the ffn "gated" needs the option "inner"'),
        ("ffn", {"kind": "gated", "inner": 0}, 'the ffn "gated": inner: Input should be greater than or equal to 1'),
        ("ffn", {"kind": "dense", "inner": 4, "activation": "swish"}, "activation: Input should be 'gelu', 'gelu_tanh', 'relu' or 'silu'"),
        ("ffn", {"inner": 4}, "give a kind of ffn"),
        ("ffn", 3, "give a kind of ffn"),
        ("norm", {"kind": "rms", "eps": -1}, "eps: Input should be greater than 0"),
        ("room", "full", 'there is no role "room"'),
    ],
)
def test_a_part_that_is_wrong(role, value, says):
    with pytest.raises(BadConfig) as caught:
        part_of(role, value)
    assert says in str(caught.value)


def test_a_file_with_a_mistake_is_named_with_its_line(tmp_path):
    path = tmp_path / "model.yaml"
    values = decoder().model_dump(mode="json")
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    assert read_config(path) == decoder()
    values["blocks"][0]["attention"]["kind"] = "ful"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "attention:" in text)
    with pytest.raises(BadConfig, match=f'{path}:{line}: "blocks.0.attention": there is no attention called "ful". Did you mean "full"'):
        read_config(path)


def test_heads_go_by_names_that_python_takes():
    with pytest.raises(BadConfig, match='"my head" cannot be the name of a head'):
        model_config({**decoder().model_dump(mode="json"), "heads": {"my head": "lm"}})
