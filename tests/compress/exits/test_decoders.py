import pytest
import torch
from torch import nn
from torch.nn import functional

from lissome.compress.exits.decoders import draft_loss
from lissome.core.errors import BadInput, BadModel
from lissome.nn.depth.dropout import layer_dropout
from lissome.train.config import TrainConfig
from lissome.train.loop import train
from tests.nn.decoder.small import llama


def batch(rows=2):
    ids = torch.randint(0, 300, (rows, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


def test_the_loss_is_the_models_and_that_of_an_exit_drawn_by_lot():
    model, given = llama(layers=3), batch()
    loss = draft_loss([1, 2], 0.5)
    with torch.no_grad():
        states = model.model(input_ids=given["input_ids"], output_hidden_states=True).hidden_states
        every = [functional.cross_entropy(model.lm_head(model.model.norm(one)).flatten(0, 1), given["labels"].flatten()) for one in states[1:3]]
        whole = functional.cross_entropy(model(given["input_ids"]).logits.flatten(0, 1), given["labels"].flatten())
        torch.manual_seed(0)
        found = [round(float(loss(model, given)), 4) for _ in range(20)]
        torch.manual_seed(0)
        assert [round(float(loss(model, given)), 4) for _ in range(20)] == found
    assert sorted(set(found)) == pytest.approx(sorted(float(whole + 0.5 * one) for one in every), rel=1e-3)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    config = TrainConfig(steps=8, lr=1e-3, precision="fp32", checkpoint_every=3)

    def learned(folder, fails_at=None):
        model, loss, calls = llama(layers=3), draft_loss([1, 2]), []

        def counted(module, one):
            calls.append(1)
            if len(calls) == fails_at:
                raise RuntimeError("lights out")
            return loss(module, one)

        train(model, [batch()] * 8, counted, config, resume=folder)
        return model.state_dict()

    whole = learned(None)
    with pytest.raises(RuntimeError, match="lights out"):
        learned(tmp_path, fails_at=5)
    resumed = learned(tmp_path)
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())


def test_it_trains_with_layers_left_out_and_early_layers_learn():
    model, given = llama(layers=3), batch()
    loss = draft_loss([1])
    with torch.no_grad():
        before = float(loss(model, given))
    with layer_dropout(model, 0.2):
        train(model, [given], loss, TrainConfig(steps=25, lr=3e-3, precision="fp32"))
    with torch.no_grad():
        assert float(loss(model, given)) < 0.7 * before


def test_what_cannot_be_trained_so():
    with pytest.raises(BadModel, match="no final norm that its exits could share"):
        draft_loss([1])(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), batch())
    with pytest.raises(BadInput, match="no exit after block 3"):
        draft_loss([3])(llama(layers=3), batch())
