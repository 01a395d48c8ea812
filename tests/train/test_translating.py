"""Batches of documents, the loss and greedy decoding, on a language whose words are numbers."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadConfig, BadTask
from lissome.data.vocabulary import END, PAD, train_tokenizer
from lissome.nn.translation import TranslatorConfig, translator
from lissome.train.config import TrainConfig
from lissome.train.loop import train
from lissome.train.translating import TranslationBatches, batch_of, encoded, translate, translation_loss

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier"}
TEXTS = [(" ".join(some), " ".join(WORDS[word] for word in some)) for some in itertools.product(WORDS, repeat=3)]
TOKENIZER = train_tokenizer([side for pair in TEXTS for side in pair], 290)
SPECIAL = {"pad": TOKENIZER.token_to_id(PAD), "end": TOKENIZER.token_to_id(END)}
PAIRS = encoded(TEXTS, TOKENIZER, SPECIAL["end"])


def made(pattern=None, layers=1):
    sizes = {"vocabulary": TOKENIZER.get_vocab_size(), "length": 64, "width": 32, "heads": 2, "layers": layers, "inner": 64, "dropout": 0.0}
    return translator(TranslatorConfig(**sizes, **SPECIAL, pattern=pattern))


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=40), tokens=st.integers(30, 90), epoch=st.integers(0, 3))
def test_every_pair_is_in_one_batch_that_fits(sizes, tokens, epoch):
    batches = TranslationBatches([([5] * a, [6] * b) for a, b in sizes], tokens, seed=3)
    rows = batches.rows(epoch)
    assert sorted(i for some in rows for i in some) == list(range(len(sizes)))
    for batch in batches.epoch(epoch):
        assert all(batch[name].numel() <= tokens for name in ("input_ids", "labels"))
    assert batches.rows(epoch) == rows
    assert [batch["labels"].tolist() for batch in batches.epoch(epoch, 1)] == [batch["labels"].tolist() for batch in batches.epoch(epoch)][1:]


def test_padding_is_hidden_and_not_learned():
    batch = batch_of([([4, 5, 2], [6, 2]), ([4, 2], [6, 7, 8, 2])])
    assert batch["input_ids"].tolist() == [[4, 5, 2], [4, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[6, 2, -100, -100], [6, 7, 8, 2]]


@pytest.mark.parametrize("pattern", [None, "window(4)"])
def test_the_loss_is_the_mean_over_real_tokens_whatever_the_padding(pattern):
    model, loss = made(pattern), translation_loss(0.1)
    both = [PAIRS[0], (PAIRS[1][0] * 2, PAIRS[1][1] * 2)]
    with torch.no_grad():
        apart = [loss(model, batch_of([pair])) * len(pair[1]) for pair in both]
        together = loss(model, batch_of(both))
    torch.testing.assert_close(together, sum(apart) / sum(len(target) for _, target in both), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pattern", [None, "window(3) | tokens([0])"])
def test_one_step_lowers_the_loss(pattern):
    model, batch, loss = made(pattern), batch_of(PAIRS[:16]), translation_loss()
    before = float(loss(model, batch).detach())
    train(model, [batch], loss, TrainConfig(steps=1, lr=1e-3, warmup=0, precision="fp32", schedule="constant"))
    assert float(loss(model, batch).detach()) < before


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [None, "window(64)"])
def test_it_learns_to_translate(pattern):
    model = made(pattern)
    train(model, TranslationBatches(PAIRS[:60], 192), translation_loss(0.0), TrainConfig(steps=300, lr=3e-3, precision="fp32"))
    assert translate(model, TOKENIZER, [source for source, _ in TEXTS], **SPECIAL, most=12, size=16)[:60] == [target for _, target in TEXTS[:60]]


def test_translations_come_in_order_and_are_no_longer_than_asked():
    seen = []
    sources = ["one", "one two three four one two", "two"]
    found = translate(made(), TOKENIZER, sources, **SPECIAL, most=5, size=2, step=lambda: seen.append(1))
    assert len(found) == 3
    assert len(seen) == 2
    assert found == [translate(made(), TOKENIZER, [one], **SPECIAL, most=5)[0] for one in sources]
    assert all(len(TOKENIZER.encode(one).ids) <= 2 * 5 for one in found)


def test_what_does_not_fit_is_said():
    with pytest.raises(BadTask, match="no pairs to train on"):
        TranslationBatches([], 100)
    with pytest.raises(BadConfig, match=r"a pair of 9 tokens does not fit a batch of 8") as caught:
        TranslationBatches([([1] * 9, [1])], 8)
    assert "at least 9 tokens" in str(caught.value)
