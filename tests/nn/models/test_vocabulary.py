"""Vocabularies of a field: new rows begin as means of old ones, old answers stay, old rows can be frozen."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer
from torch.testing import assert_close

from lissome.core.errors import BadInput, BadModel
from lissome.data.vocabulary import train_tokenizer
from lissome.nn.load import load_model
from lissome.nn.models.assembly import assemble
from lissome.nn.models.presets import bert, vit
from lissome.nn.models.swap import train_only
from lissome.nn.models.vocabulary import extend, merged, save_extended
from tests.nn.models.small import LENGTH, decoder, shaken

SIZE = 280
NEW = ["tachycardia", "stenosis", " of the heart"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the heart of the matter is the art of the state"] * 20, SIZE)


def untied(vocabulary: int):
    values = bert(vocabulary, 32, 2, 4, 48, LENGTH).model_dump(mode="json")
    return {**values, "heads": {"words": {"kind": "lm", "tied": False, "bias": True, "transform": "gelu"}}}


def models(tokenizer: Tokenizer):
    size = tokenizer.get_vocab_size()
    tied = decoder(embedding={"kind": "tokens", "vocabulary": size + 9})  # padded to a round number, as models often are
    return [shaken(assemble(tied)), shaken(assemble(decoder(**untied(size))))]


@torch.no_grad()
@pytest.mark.parametrize("which", [0, 1])
def test_new_tokens_begin_as_the_mean_of_their_pieces(tokenizer, which):
    base = models(tokenizer)[which]
    found = extend(base, tokenizer, NEW)
    size = tokenizer.get_vocab_size()
    for at, token in enumerate(NEW):
        pieces = tokenizer.encode(token, add_special_tokens=False).ids
        assert list(found.pieces[token]) == pieces and len(pieces) > 1
        assert found.tokenizer.token_to_id(token) == size + at
        assert_close(found.model.trunk.embedding.added.weight[at], base.trunk.embedding.table.weight[pieces].mean(0))
        head = next(iter(base.heads.values())).linear
        assert_close(next(iter(found.model.heads.values())).added.weight[at], head.weight[pieces].mean(0))
        if head.bias is not None:
            assert_close(next(iter(found.model.heads.values())).added.bias[at], head.bias[pieces].mean())
    ids = torch.tensor([tokenizer.encode("the state of the art").ids])
    assert_close(found.model(ids)[..., :size], base(ids)[..., :size])  # old tokens are answered about as before
    text = "the tachycardia of the heart"
    new_ids = found.tokenizer.encode(text).ids
    assert size in new_ids and size + 2 in new_ids and found.tokenizer.decode(new_ids) == text
    assert found.model(torch.tensor([new_ids])).shape[-1] == size + 3
    # a token of letters is a whole word
    assert size not in found.tokenizer.encode("tachycardias").ids


@torch.no_grad()
@pytest.mark.parametrize("which", [0, 1])
def test_merged_answers_the_same_and_is_extended_again(tokenizer, which):
    found = extend(models(tokenizer)[which], tokenizer, NEW)
    ids = torch.tensor([found.tokenizer.encode("the tachycardia of the heart").ids])
    whole = merged(found.model)
    assert whole.config.embedding.options["added"] == 0
    assert_close(whole(ids), found.model(ids))
    again = extend(found.model, found.tokenizer, ["infarct"])
    assert again.model.config.embedding.options["vocabulary"] == tokenizer.get_vocab_size() + 3
    assert_close(again.model(ids)[..., :-1], found.model(ids))


def test_old_rows_stay_when_only_the_new_learn(tokenizer):
    from lissome.train.config import TrainConfig
    from lissome.train.finetune import language_loss
    from lissome.train.loop import train

    found = extend(models(tokenizer)[1], tokenizer, NEW)
    names = train_only(found.model, found.new)
    assert names == ("trunk.embedding.added.weight", "heads.words.added.weight", "heads.words.added.bias")
    before = copy.deepcopy(found.model.state_dict())
    ids = torch.tensor([found.tokenizer.encode("the tachycardia of the heart and a stenosis").ids])
    train(found.model, [{"input_ids": ids, "labels": ids}], language_loss(), TrainConfig(steps=3, lr=0.1, weight_decay=0.5, precision="fp32"))
    after = found.model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(names)


@torch.no_grad()
def test_a_folder_with_its_tokenizer(tokenizer, tmp_path):
    found = extend(models(tokenizer)[0], tokenizer, NEW)
    (tmp_path / "base").mkdir()
    for name in ("special_tokens_map.json", "vocab.txt"):
        (tmp_path / "base" / name).write_text("{}")
    save_extended(found, tmp_path / "new", tmp_path / "base")
    loaded = load_model(str(tmp_path / "new"))
    read = Tokenizer.from_file(str(loaded.directory / "tokenizer.json"))
    ids = read.encode("the tachycardia of the heart").ids
    assert ids == found.tokenizer.encode("the tachycardia of the heart").ids
    assert_close(loaded.module(torch.tensor([ids])), found.model(torch.tensor([ids])))
    assert (loaded.directory / "special_tokens_map.json").exists() and not (loaded.directory / "vocab.txt").exists()


@pytest.mark.parametrize(
    ("tokens", "says"),
    [([], "the new tokens are none"), (["a b", "a b"], "one is named twice"), ([" "], '" " is no token'), (["t"], '"t" is a token already')],
)
def test_tokens_that_cannot_be_added(tokenizer, tokens, says):
    with pytest.raises(BadInput, match=says):
        extend(models(tokenizer)[0], tokenizer, tokens)


def test_models_that_cannot_be_extended(tokenizer):
    small = assemble(decoder(embedding={"kind": "tokens", "vocabulary": 99}))
    with pytest.raises(BadModel, match=f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the model 99"):
        extend(small, tokenizer, ["stenosis"])
    with pytest.raises(BadModel, match="no embedding of tokens"):
        extend(assemble(vit(16, 4, 32, 2, 4, 48, 5)), tokenizer, ["stenosis"])
