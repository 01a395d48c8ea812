from __future__ import annotations

import subprocess
import sys

import pydantic
import pytest

from lissome.core.config import read_yaml
from lissome.core.errors import BadConfig
from lissome.train.config import FinetuneConfig, TrainConfig
from lissome.train.recipes import digits_recipe, sentiment_recipe


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(steps=3, spend=9.5, checkpoint_every=4, optimizer_options={"momentum": 0.9})])
def test_round_trip(config):
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("recipe", [sentiment_recipe, digits_recipe])
def test_recipes_round_trip(recipe):
    assert FinetuneConfig.model_validate_json(recipe().model_dump_json()) == recipe()


def test_frozen():
    with pytest.raises(pydantic.ValidationError):
        TrainConfig().lr = 3


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"epochs": 1, "steps": 2}, "epochs or steps, not both"),
        ({"lr": 0}, "greater than 0"),
        ({"epochs": 0}, "greater than 0"),
        ({"lr": float("nan")}, "greater than 0"),
        ({"checkpoint_every": "5 minutes"}, "60s"),
        ({"checkpoint_every": 0}, "at least 1"),
        ({"precision": "fp16"}, "'fp32', 'bf16' or 'auto'"),
        ({"optimizer": "adamv"}, "'adamw'"),
        ({"warmup": 2}, "less than or equal to 1"),
        ({"spend": -1}, "greater than 0"),
        ({"learning_rate": 1}, "Extra inputs"),
    ],
)
def test_wrong_values(wrong, text):
    with pytest.raises(pydantic.ValidationError, match=text):
        TrainConfig(**wrong)


def test_unknown_key_in_a_file_is_named_with_its_line(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("lr: 1e-3\nepoch: 2\n")
    with pytest.raises(BadConfig, match=r'train.yaml:2: unknown key "epoch". Did you mean "epochs"'):
        read_yaml(file, TrainConfig)


def test_due():
    assert TrainConfig(checkpoint_every="1.5s").due(1.6, 0)
    assert not TrainConfig(checkpoint_every="1.5s").due(1.4, 99)
    assert TrainConfig(checkpoint_every=3).due(0, 3)
    assert not TrainConfig(checkpoint_every=3).due(99, 2)


def test_configs_import_without_torch():
    code = "import sys, lissome.train.config, lissome.train.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
