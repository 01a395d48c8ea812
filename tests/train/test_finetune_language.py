"""Fine-tuning a decoder on text: the loss, the score, and heads and tokens that do not fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from lissome.core.cache import Cache
from lissome.core.errors import BadModel
from lissome.data.long_range import mqar_task
from lissome.nn.load import as_model
from lissome.train.batches import LABELS, Batches
from lissome.train.config import FinetuneConfig, TrainConfig
from lissome.train.finetune import finetune, language_loss, score_of
from tests.train.small import number_task, small

TASK = mqar_task(16, 2, 16, {"train": 200, "calibration": 5, "validation": 50, "test": 5})


def llama(words: int = 16):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": words}
    return as_model(LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0, bos_token_id=None, eos_token_id=None)), "llama")


def test_the_loss_is_the_mean_over_what_is_asked_for():
    batch, module = Batches(TASK, "train", 4).batch([0, 1, 2, 3]), llama().module
    logits = module(batch["input_ids"]).logits
    expected = functional.cross_entropy(logits.flatten(0, 1), batch[LABELS].flatten(), ignore_index=-100)
    torch.testing.assert_close(language_loss()(module, batch), expected)


def test_learns(tmp_path):
    model = llama()
    config = FinetuneConfig(train=TrainConfig(epochs=6, lr=1e-2, precision="fp32"), size=20)
    trained = finetune(model, TASK, config, Cache(tmp_path))
    assert trained.architecture.target == "LlamaForCausalLM"
    assert score_of(trained.module, TASK) > score_of(model.module, TASK) + 0.04  # values are told from keys, at least
    assert finetune(model, TASK, config, Cache(tmp_path)).fingerprint == trained.fingerprint


def test_the_score_of_batches_is_the_score_of_the_whole():
    module = llama().module
    split = TASK.splits["validation"]
    with torch.no_grad():
        whole = module(torch.from_numpy(np.stack(split.inputs))).logits.numpy()
    assert score_of(module, TASK) == pytest.approx(TASK.score(whole, split.targets).mean())
    other = small().eval()
    assert score_of(other, number_task(), size=3) == pytest.approx(score_of(other, number_task(), size=1000))


def test_a_tokenizer_of_another_model_and_a_model_without_the_head(tmp_path):
    with pytest.raises(BadModel, match=r"shape \['any', 'length', 10\] for one window"):
        finetune(llama(10), TASK, FinetuneConfig(), Cache(tmp_path))
    classifier = as_model(small(), "small")
    table = dataclasses.replace(TASK, collate=lambda rows, padding: number_task().collate(number_task().splits["train"].inputs[: len(rows)], padding))
    with pytest.raises(BadModel, match="asks for the token after each of 16 places"):
        finetune(classifier, table, FinetuneConfig(), Cache(tmp_path))
