"""Swapping parts: what fits goes over, the rest is listed, the old model stays, and only what is new learns."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from lissome.core.errors import BadConfig, BadInput, BadModel
from lissome.nn.load import as_model
from lissome.nn.models.assembly import assemble
from lissome.nn.models.presets import vit
from lissome.nn.models.swap import carry, swap, train_only
from tests.nn.models.small import ids, model, padded

SWAPS = [
    ("attention", {"kind": "sparse", "pattern": "window(8)"}),
    ("attention", {"kv_heads": 4}),
    ("attention", {"bias": True}),
    ("ffn", "relu2"),
    ("ffn", {"kind": "dense", "bias": False}),
    ("ffn", {"inner": 20}),
    ("norm", "layer"),
]


@torch.no_grad()
def test_sparse_attention_takes_every_weight_of_full():
    old = model()
    found = swap(old, "attention", {"kind": "sparse", "pattern": "everything()"})
    assert (found.new, found.left) == ((), ())
    assert found.model.config.blocks[0].attention.options["kv_heads"] == 2  # options that are not given are the old ones
    tokens, mask = padded(3, 40)
    assert_close(found.model(tokens, mask)[mask.bool()], old(tokens, mask)[mask.bool()], atol=2e-5, rtol=1e-4)
    windowed = swap(as_model(old), "attention", {"kind": "sparse", "pattern": "window(8)"}).model
    assert (windowed(tokens) - old(tokens)).abs().max() > 0.01


@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(change=st.sampled_from(SWAPS), layers=st.sets(st.integers(0, 2), min_size=1).map(sorted))
def test_new_and_left_are_exactly_what_differs(change, layers):
    old = model()
    before = copy.deepcopy(old.state_dict())
    found = swap(old, change[0], change[1], layers=layers)
    state = found.model.state_dict()
    shapes = {name: value.shape for name, value in before.items()}
    assert set(found.new) == {name for name, _ in found.model.named_parameters() if shapes.get(name) != state[name].shape}
    assert set(found.left) == {name for name in before if name not in state or state[name].shape != shapes[name]}
    assert all(torch.equal(state[name], before[name]) for name in set(before) - set(found.left))
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())
    assert all(f".{at}." not in name for name in found.new for at in set(range(3)) - set(layers))
    assert found.model(ids()).isfinite().all()


def test_there_and_back_is_the_same_config():
    old = model()
    there = swap(old, "ffn", "relu2", layers=[1]).model
    assert [block.repeat for block in there.config.blocks] == [1, 1, 1]
    back = swap(there, "ffn", {"kind": "gated"}, layers=[1]).model
    assert back.config == old.config


@torch.no_grad()
def test_learned_scorers_are_new():
    found = swap(model(), "attention", {"kind": "sparse", "pattern": "window(8) | top_blocks(2, indexer)"}, layers=[0])
    assert found.new and all(name.startswith("trunk.blocks.0.attention.indexer.") for name in found.new)
    assert found.model(ids(1, 90)).isfinite().all()


def test_a_head_is_added_changed_and_removed():
    old = model()
    found = swap(old, "head", {"kind": "classification", "classes": 3}, name="topic")
    assert found.new == ("heads.topic.linear.weight", "heads.topic.linear.bias")
    assert list(found.model.heads) == ["lm", "topic"]
    again = swap(found.model, "head", {"classes": 4}, name="topic")
    assert again.new == found.new and again.model.config.heads["topic"].options["classes"] == 4
    gone = swap(again.model, "head", None, name="lm")
    assert list(gone.model.heads) == ["topic"] and gone.left == ("heads.lm.linear.weight",)


def test_learned_positions_and_an_embedding_for_images():
    found = swap(model(), "positions", "learned")
    assert found.new == ("trunk.positions.table.weight",)
    small = assemble(vit(16, 4, 32, 2, 4, 48, 5))
    found = swap(small, "embedding", {"channels": 1})
    assert found.new == ("trunk.embedding.projection.weight",)


def test_only_what_is_new_learns():
    from lissome.train.config import TrainConfig
    from lissome.train.finetune import classification_loss, language_loss
    from lissome.train.loop import train

    old = model()
    found = swap(swap(old, "ffn", {"inner": 20}, layers=[2]).model, "head", {"kind": "classification", "classes": 2}, name="topic")
    names = train_only(found.model, [*found.new, "trunk.blocks.2.ffn"])
    assert names == (
        "trunk.blocks.2.ffn.gate_proj.weight",
        "trunk.blocks.2.ffn.up_proj.weight",
        "trunk.blocks.2.ffn.down_proj.weight",
        "heads.topic.linear.weight",
        "heads.topic.linear.bias",
    )
    before = copy.deepcopy(found.model.state_dict())
    tokens = ids(8, 12)
    batches = [{"input_ids": tokens[i : i + 4], "labels": tokens[i : i + 4, 0] % 2} for i in (0, 4)]

    def loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        both = module(batch["input_ids"], heads=("lm", "topic"))
        following = nn.functional.cross_entropy(both["lm"][:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())
        return following + nn.functional.cross_entropy(both["topic"], batch["labels"])

    train(found.model, batches, loss, TrainConfig(steps=4, lr=1e-2, weight_decay=0.1, precision="fp32"))
    after = found.model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(names)
    # the losses that verbs use
    one = train(found.model, [{**batch, "labels": batch["input_ids"]} for batch in batches], language_loss(), TrainConfig(steps=2, precision="fp32"))
    assert one.steps == 2
    topic = swap(found.model, "head", None, name="lm").model
    assert train(topic, batches, classification_loss(), TrainConfig(steps=2, precision="fp32")).steps == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ffn", "gatde"), 'there is no ffn called "gatde". Did you mean "gated"?'),
        (("atention", "full"), 'there is no role "atention" in a model. Did you mean "attention"?'),
        (("attention", {"kind": "full", "heads": 5}), "5 heads do not divide the width 32"),
        (("attention", {"kind": "sparse"}), 'the attention "sparse" needs the option "pattern"'),
        (("ffn", "relu2", [3]), "there is no block 3\n  Expected: 0 to 2"),
        (("positions", "none", [0]), "positions is not a part of single blocks"),
        (("head", "lm"), "a head goes by its name"),
        (("ffn", "relu2", None, "topic"), "ffn has no name"),
        (("ffn", None), "a model cannot be without ffn"),
        (("head", None, None, "llm"), 'the model has no head "llm". Did you mean "lm"?'),
    ],
)
def test_what_cannot_be_swapped(arguments, says):
    role, part, layers, name = (*arguments, None, None)[:4]
    with pytest.raises((BadConfig, BadInput)) as caught:
        swap(model(), role, part, layers=layers, name=name)
    assert says in str(caught.value)


@torch.no_grad()
def test_a_head_that_becomes_tied_leaves_its_own_weights():
    heads = {"lm": {"kind": "lm", "tied": False}}
    old = model(heads=heads)
    found = swap(old, "head", {"tied": True}, name="lm")
    assert (found.new, found.left) == ((), ("heads.lm.linear.weight",))
    assert torch.equal(found.model.trunk.embedding.table.weight, old.trunk.embedding.table.weight)
    assert found.model.heads["lm"].linear.weight is found.model.trunk.embedding.table.weight
    apart = swap(found.model, "head", {"tied": False}, name="lm")
    assert swap(apart.model, "head", {"tied": True}, name="lm").left == ()  # both have the same values


def test_a_model_that_is_not_made_of_parts():
    with pytest.raises(BadModel, match=r"swap takes models put together from parts, not Linear\n.*from_transformers"):
        swap(nn.Linear(2, 2), "ffn", "relu2")


def test_weights_that_fit_nothing():
    with pytest.raises(BadModel, match=r"none of the 2 weights fits this model by name and shape; the first is weight \[2, 2\]"):
        carry(model(), nn.Linear(2, 2).state_dict())


def test_what_cannot_be_trained_alone():
    with pytest.raises(BadInput, match=r'no parameter or part "heads.topic"'):
        train_only(model(), ["heads.topic"])
    with pytest.raises(BadInput, match="there is nothing new to train"):
        train_only(model(), ())
