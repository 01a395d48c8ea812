"""Experts as a part of a modular model: by name in a config, trained, saved, swapped in and out."""

import pytest
import torch
from torch.testing import assert_close

from lissome.core.errors import BadConfig, BadModel
from lissome.nn.load import as_model, load_model, save_model
from lissome.nn.models.config import part_of
from lissome.nn.models.swap import swap, train_only
from lissome.nn.moe.balance import layers_of
from lissome.nn.moe.in_models import put_experts
from lissome.nn.moe.reference import moe
from lissome.nn.moe.specialise import expert_use
from lissome.train.config import TrainConfig
from lissome.train.experts import Balance, balanced
from lissome.train.loop import train
from tests.nn.models.small import ids, model

EXPERTS = {"kind": "experts", "neurons": 16, "experts": 4, "active": 2, "shared": 8, "balance": "switch"}


def made():
    return swap(model(), "ffn", EXPERTS, layers=[1, 2]).model


@torch.no_grad()
def test_a_config_with_experts_builds_and_computes():
    one = model(blocks=[{"attention": {"kind": "full", "heads": 4}, "ffn": EXPERTS, "repeat": 2}])
    assert one(ids()).shape == (2, 20, 99) and one.config.blocks[0].ffn.options["active"] == 2
    x = torch.randn(5, 32)
    assert all(torch.allclose(layer(x), moe(layer, x), atol=1e-5) for layer in layers_of(one)) and len(list(layers_of(one))) == 2
    assert set(expert_use(one, {"a": [ids()[0].numpy()], "b": [ids()[1].numpy()]}, draws=19).layers[0].shares) == {"a", "b"}


def test_it_learns_is_saved_and_loaded(tmp_path):
    one = made()
    before = {name: weight.clone() for name, weight in one.named_parameters()}
    batches = [(ids(seed=seed), ids(seed=seed).roll(-1, 1)) for seed in range(4)]

    def loss(module, batch):
        return torch.nn.functional.cross_entropy(module(batch[0]).flatten(0, 1), batch[1].flatten())

    seen = Balance()
    train(one, batches, balanced(loss), TrainConfig(steps=4, lr=1e-3, precision="fp32"), callbacks=[seen])
    assert len(seen.loads) == 4 and seen.loads[0].shape == (2, 4)
    changed = {name for name, weight in one.named_parameters() if not torch.equal(weight, before[name])}
    assert {"trunk.blocks.1.ffn.router.weight", "trunk.blocks.2.ffn.experts.up", "trunk.blocks.1.ffn.shared.down"} <= changed
    wrapped = as_model(one.eval())
    save_model(wrapped, tmp_path)
    again = load_model(str(tmp_path))
    assert again.fingerprint == wrapped.fingerprint
    with torch.no_grad():
        assert torch.equal(again.module(ids()), one(ids()))


def test_swapped_in_all_that_is_new_learns_and_swapped_again_all_is_kept():
    old = model()
    found = swap(old, "ffn", EXPERTS, layers=[1])
    assert set(train_only(found.model, found.new)) == {name for name, _ in found.model.named_parameters() if ".1.ffn." in name}
    assert set(found.left) == {name for name in old.state_dict() if ".1.ffn." in name}
    more = swap(found.model, "ffn", {"active": 3}, layers=[1])
    assert (more.new, more.left) == ((), ()) and more.model.config.layers()[1].ffn.options == {**found.model.config.layers()[1].ffn.options, "active": 3}
    assert_close(dict(more.model.named_parameters()), dict(found.model.named_parameters()))


def test_what_makes_no_sense_is_named():
    with pytest.raises(BadConfig, match=r'the ffn "experts" needs the option "neurons"'):
        part_of("ffn", "experts")
    with pytest.raises(BadConfig, match=r'has no option "expert"\. Did you mean "experts"'):
        part_of("ffn", {"kind": "experts", "neurons": 4, "expert": 3})
    with pytest.raises(BadConfig, match='the ffn "experts": 5 active experts of 4: a token cannot take more experts than there are'):
        part_of("ffn", {**EXPERTS, "active": 5})
    with pytest.raises(BadConfig, match=r"experts of 4 bits cannot be trained"):
        swap(model(), "ffn", {**EXPERTS, "group": 32})
    one = made()
    with pytest.raises(BadModel, match="a model of parts names its experts as a part"):
        put_experts(one, {"trunk.blocks.0.ffn": next(layers_of(one))})
