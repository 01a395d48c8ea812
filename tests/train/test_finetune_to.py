from __future__ import annotations

import pytest
import torch

from lissome.core.cache import Cache
from lissome.core.errors import BadInput
from lissome.nn.load import load_model
from lissome.train.config import FinetuneConfig, TrainConfig
from lissome.train.finetune import finetune_to, with_head
from tests.train.small import word_task

QUICK = FinetuneConfig(train=TrainConfig(epochs=1, lr=1e-3, precision="fp32"), size=20)
TASK = "tests.train.small:word_task"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny BERT without a head."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32)
    ).save_pretrained(folder)
    return str(folder)


def test_writes_a_folder_that_loads(encoder, tmp_path):
    made = finetune_to(tmp_path / "out", encoder, TASK, QUICK, Cache(tmp_path / "cache"))
    model = load_model(made.folder)
    assert made.folder == str(tmp_path / "out")
    assert model.fingerprint == made.fingerprint
    assert model.architecture.target == "BertForSequenceClassification"
    assert made.steps == 5
    assert 0 <= made.score <= 1
    assert finetune_to(tmp_path / "out", encoder, TASK, QUICK, Cache(tmp_path / "cache")) == made  # may be written over: it is the same kind of thing


def test_a_fresh_head_depends_on_the_seed_only(encoder):
    task = word_task()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = with_head(encoder, task)
    assert torch.equal(torch.rand(1), expected)
    assert first.fingerprint == with_head(encoder, task).fingerprint != with_head(encoder, task, seed=1).fingerprint


def test_a_head_that_fits_is_kept(encoder, tmp_path):
    made = finetune_to(tmp_path / "out", encoder, TASK, QUICK, Cache(tmp_path / "cache"))
    assert with_head(made.folder, word_task()).fingerprint == made.fingerprint


def test_another_folder_is_not_written_over(tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(BadInput, match=r"holds something else(.|\n)*name a new folder"):
        finetune_to(tmp_path, "nowhere", TASK)
