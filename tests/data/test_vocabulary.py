"""Tokenizers trained here write every text and give it back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.cache import Cache
from lissome.core.errors import BadConfig, BadInput
from lissome.data import vocabulary
from lissome.data.catalogues import SEPARATOR
from lissome.data.vocabulary import END, PAD, SPECIAL, tokenizer_for, train_tokenizer

TEXTS = [f"the {word} file cannot be {verb}" for word in ("first", "second", "größte") for verb in ("opened", "closed", "gelesen")]
MADE = train_tokenizer(TEXTS, 320)


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_every_text_comes_back(text):
    assert MADE.decode(MADE.encode(text).ids, skip_special_tokens=False) == text


def test_common_words_are_one_token_and_special_ones_come_first():
    assert MADE.get_vocab_size() <= 320
    assert len(MADE.encode(" file").ids) == 1
    assert [MADE.token_to_id(name) for name in SPECIAL] == [0, 1, 2]
    assert (SPECIAL[0], SPECIAL[2]) == (PAD, END)


@settings(max_examples=50, deadline=None)
@given(parts=st.lists(st.text("abc .,!", min_size=1).map(lambda text: " ".join(text.split())).filter(bool), min_size=1, max_size=5))
def test_a_separator_is_one_token_beside_the_messages_own(parts):
    assert len(MADE.encode(SEPARATOR.join(parts)).ids) == sum(len(MADE.encode(part).ids) for part in parts) + len(parts) - 1


def test_the_same_texts_give_the_same_tokenizer_once(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    first = tokenizer_for(TEXTS, 300, cache=cache)
    assert first.to_str() == train_tokenizer(TEXTS, 300).to_str()
    monkeypatch.setattr(vocabulary, "train_tokenizer", None)
    assert tokenizer_for(TEXTS, 300, cache=cache).to_str() == first.to_str()


def test_what_cannot_be_learned_is_said():
    with pytest.raises(BadConfig, match="a vocabulary of 100 is too small") as caught:
        train_tokenizer(TEXTS, 100)
    assert "at least 259" in str(caught.value)
    with pytest.raises(BadConfig, match="not all different"):
        train_tokenizer(TEXTS, 400, special=("a", "a"))
    for nothing in ([], ["", ""]):
        with pytest.raises(BadInput, match="no text to learn"):
            train_tokenizer(nothing, 300)
