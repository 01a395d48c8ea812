import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lissome.core.errors import BadInput, BadModel
from lissome.nn.call import call
from lissome.nn.depth.blocks import find_blocks, fixed_places
from lissome.nn.depth.confidence import NEVER, confidence
from lissome.nn.depth.dropout import dropout_rates, layer_dropout
from lissome.nn.depth.exits import Exits, with_exits
from lissome.nn.depth.store import as_exits_model, save_exits
from lissome.nn.load import as_model, load_model
from tests.nn.models import small


def bert(layers=4, classes=3, seed=0):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 60, "max_position_embeddings": 32}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=layers, num_labels=classes, **sizes)).eval()


def texts(rows, length=9, seed=0):
    lot = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, length + 1, (rows, 1), generator=lot)
    return {"input_ids": torch.randint(1, 60, (rows, length), generator=lot), "attention_mask": (torch.arange(length)[None] < lengths).long()}


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.inner(x))


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)
        self.stages = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)))

    def forward(self, x):
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = nn.TransformerEncoder(layer, 3), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.encoder(x)[:, 0])

    return Whole().eval()


class Placed(nn.Module):
    """Blocks are given what has as many rows as there are places: a batch may have so many too."""

    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(PlacedBlock() for _ in range(3)), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(LENGTH, 8))

    def forward(self, x):
        for block in self.blocks:
            x = block(x, places=[self.table])
        return self.head(x[:, 0])


class PlacedBlock(Residual):
    def __init__(self):
        super().__init__(8)

    def forward(self, x, places):
        return super().forward(x + places[0])


LENGTH = 6


def rotary():
    heads = {"topic": {"kind": "classification", "classes": 3}}
    return small.model(heads=heads)


torch.manual_seed(0)
MODELS = {
    "rotary": (rotary(), lambda n: {"input_ids": small.ids(n, LENGTH)}),
    "placed": (Placed().eval(), lambda n: {"x": torch.randn(n, LENGTH, 8)}),
    "bert": (bert(), lambda n: texts(n)),
    "mlp": (nn.Sequential(*(Residual(12) for _ in range(4)), nn.Linear(12, 3)).eval(), lambda n: {"x": torch.randn(n, 12)}),
    "conv": (Conv().eval(), lambda n: {"x": torch.randn(n, 1, 9, 9)}),
    "encoder": (encoder(), lambda n: {"x": torch.randn(n, 6, 16)}),
}


def exits_of(name, after=(1, 2), **options) -> Exits:
    module, batch = MODELS[name]
    torch.manual_seed(1)
    made = with_exits(copy.deepcopy(module), after, batch(2), **options)
    made.trained.fill_(True)
    return made.eval()


def slowly(exits, inputs):
    """What forward gives, one row after the other and with nothing left out."""
    answers, taken = [], []
    for row in range(len(next(iter(inputs.values())))):
        every = exits.all_logits({name: one[row : row + 1] for name, one in inputs.items()})
        sure = [float(confidence(logits, exits.rule)) for logits in every[:-1]]
        out = next((at for at, one in enumerate(sure) if one >= float(exits.thresholds[at])), len(sure))
        answers.append(every[out][0])
        taken.append(out)
    return torch.stack(answers), taken


@pytest.mark.parametrize("name", sorted(MODELS))
@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 9), rule=st.sampled_from(["max-probability", "margin", "entropy"]), shares=st.tuples(*[st.sampled_from([0.0, 0.4, 0.7, 1.0])] * 2))
def test_rows_leave_and_the_rest_goes_on_as_if_alone(name, rows, rule, shares):
    """Thresholds at quantiles of the confidences, so that some rows leave at each exit, all, or none; the order is the batch's."""
    with torch.no_grad():
        exits, inputs = exits_of(name, rule=rule), MODELS[name][1](rows)
        sure = [confidence(one, rule) for one in exits.all_logits(inputs)[:-1]]
        exits.leave_at([float(one.quantile(share)) - 1e-4 if share < 1 else NEVER for one, share in zip(sure, shares, strict=True)])
        expected, taken = slowly(exits, inputs)
        torch.testing.assert_close(call(exits, inputs), expected, rtol=1e-4, atol=1e-5)
        assert exits.taken.tolist() == taken


@pytest.mark.parametrize("name", sorted(MODELS))
def test_closed_exits_leave_the_model_as_it_is(name):
    module, batch = MODELS[name]
    inputs = batch(5)
    with torch.no_grad():
        torch.testing.assert_close(call(exits_of(name), inputs), call(module, inputs))  # torch's own encoder has a fused path beside
        assert exits_of(name).all_logits(inputs)[-1].shape == call(module, inputs).shape


@pytest.mark.parametrize("name", ["rotary", "placed"])
def test_as_many_rows_as_places(name):
    exits, inputs = exits_of(name), MODELS[name][1](LENGTH)
    with torch.no_grad():
        sure = confidence(exits.all_logits(inputs)[0], exits.rule)
        exits.leave_at([float(sure.median()) - 1e-4, NEVER])
        expected, taken = slowly(exits, inputs)
        torch.testing.assert_close(call(exits, inputs), expected, rtol=1e-4, atol=1e-5)
    assert exits.taken.tolist() == taken and {0, 2} == set(taken)


def test_places_that_do_not_follow_the_batch():
    assert fixed_places(MODELS["placed"][0], MODELS["placed"][1](2)) == ("places.0",)
    assert fixed_places(MODELS["placed"][0], MODELS["placed"][1](LENGTH)) == ("places.0",)
    assert fixed_places(MODELS["rotary"][0], MODELS["rotary"][1](1)) == ("2.0", "2.1")
    assert fixed_places(MODELS["mlp"][0], MODELS["mlp"][1](3)) == ()
    assert fixed_places(bert(), texts(2)) == ()


def test_what_left_is_not_computed_any_more():
    exits, ran = exits_of("mlp"), []
    for block in exits.every():
        block.register_forward_hook(lambda _, args, __: ran.append(len(args[0])))
    with torch.no_grad():
        inputs = {"x": torch.randn(6, 12)}
        sure = confidence(exits.all_logits(inputs)[0], "max-probability")
        ran.clear()
        exits.leave_at([float(sure.sort().values[2]), NEVER])
        call(exits, inputs)
        assert ran == [6, 2, 2, 2, 2]
        ran.clear()
        exits.leave_at([0.0, NEVER])
        call(exits, inputs)
    assert ran == [6]


def test_logits_that_are_no_numbers_never_leave():
    exits, inputs = exits_of("bert").leave_at([0.0, 0.0]), texts(4)
    with torch.no_grad():
        expected = call(exits.module, inputs)
        for head in exits.heads:
            head.out.weight.fill_(float("nan"))
        assert torch.equal(call(exits, inputs), expected)
        assert exits.taken.tolist() == [2] * 4
    assert torch.isnan(confidence(torch.tensor([[torch.inf, 0.0]]), "margin")).all()


def test_an_empty_batch_gives_no_rows():
    assert call(exits_of("bert").leave_at([0.5, 0.5]), texts(0)).shape == (0, 3)


def test_confidence_by_hand():
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    assert float(confidence(logits, "max-probability")) == pytest.approx(0.7)
    assert float(confidence(logits, "margin")) == pytest.approx(0.5)
    entropy = -(0.7 * torch.tensor(0.7).log() + 0.2 * torch.tensor(0.2).log() + 0.1 * torch.tensor(0.1).log()) / torch.tensor(3.0).log()
    assert float(confidence(logits, "entropy")) == pytest.approx(1 - float(entropy))
    for rule in ("max-probability", "margin", "entropy"):
        assert float(confidence(torch.tensor([[900.0, 0.0, 0.0]]), rule)) == pytest.approx(1)


def test_bad_exits():
    with pytest.raises(BadInput, match=r"no exit after block 4: the model has 4 blocks[\s\S]*1 to 3"):
        with_exits(bert(), [1, 4], texts(2))
    with pytest.raises(BadInput, match="there is no exit"):
        with_exits(bert(), [], texts(2))
    with pytest.raises(BadModel, match="no blocks were found in Linear"):
        with_exits(nn.Linear(3, 2), [1], {"x": torch.zeros(1, 3)})
    with pytest.raises(BadModel, match=r'"classifier" is no list of blocks: a Linear'):
        find_blocks(bert(), "classifier")
    with pytest.raises(BadModel, match="no such module"):
        find_blocks(bert(), "nowhere")
    with pytest.raises(BadModel, match="the exit heads were not trained"):
        with_exits(bert(), [1], texts(2)).leave_at([0.9])
    with pytest.raises(BadInput, match="1 thresholds do not fit 2 exits"):
        exits_of("bert").leave_at([0.9])
    with pytest.raises(BadInput, match="a threshold is not a number"):
        exits_of("bert").leave_at([0.9, float("nan")])
    with pytest.raises(BadModel, match="logits \\[examples, classes\\]"):
        with_exits(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), [1], {"x": torch.zeros(2, 3)})


def test_a_folder_opens_again(tmp_path):
    module = bert()
    exits = with_exits(module, [1, 3], texts(2), rule="margin")
    exits.trained.fill_(True)
    exits.leave_at([0.3, NEVER])
    save_exits(as_exits_model(exits, as_model(module)), tmp_path / "model")
    again = load_model(str(tmp_path / "model")).module
    with torch.no_grad():
        assert torch.equal(call(again, texts(6)), call(exits.eval(), texts(6)))
    assert again.taken.tolist() == exits.taken.tolist() and again.rule == "margin" and bool(again.trained)


def test_what_cannot_be_built_again_is_refused():
    module = copy.deepcopy(MODELS["mlp"][0])
    with pytest.raises(BadModel, match="came as a module in memory"):
        as_exits_model(with_exits(module, [1], {"x": torch.zeros(1, 12)}), as_model(module))


def test_a_copy_has_flows_of_its_own():
    exits = exits_of("bert").leave_at([0.0, 0.0])
    other = copy.deepcopy(exits)
    with torch.no_grad():
        call(other, texts(3))
    assert other.taken.tolist() == [0, 0, 0] and len(exits.taken) == 0


class TestLayerDropout:
    def test_rates_rise_with_the_depth(self):
        assert dropout_rates(3, 0.4) == pytest.approx([0, 0.4 * (2**0.5 - 1), 0.4])
        with pytest.raises(BadInput, match=r"layer dropout of 1\.0 is out of range"):
            dropout_rates(3, 1.0)

    def test_a_row_that_skips_a_block_passes_it_unchanged_and_gives_it_no_gradient(self):
        module, x = nn.Sequential(*(Residual(5) for _ in range(2))), torch.randn(40, 5)
        torch.manual_seed(3)
        with layer_dropout(module.train(), 0.6):
            out = module(x)
        middle, whole = module[0](x), module(x)
        skipped = (out == middle).all(-1)
        assert 10 < int(skipped.sum()) < 35
        torch.testing.assert_close(out[~skipped], whole[~skipped])
        out[skipped].sum().backward(retain_graph=True)
        assert not module[1].inner.weight.grad.any() and module[0].inner.weight.grad.any()
        assert "forward" not in module[1].__dict__

    def test_a_forward_that_was_set_before_comes_back(self):
        module = nn.Sequential(Residual(5), Residual(5))
        own = module[1].forward = lambda x: x
        with layer_dropout(module, 0.3):
            outer = module[1].forward
            with layer_dropout(module, 0.6):
                assert module[1].forward is not outer
            assert module[1].forward is outer
        assert module[1].forward is own and torch.equal(module[1](x := torch.randn(2, 5)), x)

    def test_as_many_rows_as_places(self):
        module, x = copy.deepcopy(MODELS["placed"][0]).train(), torch.randn(LENGTH, LENGTH, 8)
        torch.manual_seed(1)
        with layer_dropout(module, 0.6, fixed=fixed_places(module, {"x": x})):
            module(x).sum().backward()
        assert module.training and module.table.grad.any()

    def test_bert_trains_and_is_whole_in_eval_mode(self):
        module, inputs = bert(), texts(8)
        with torch.no_grad():
            expected = call(module, inputs)
        with layer_dropout(module, 0.9):
            assert torch.equal(call(module.eval(), inputs), expected)
            call(module.train(), inputs).sum().backward()
        assert all(p.grad is not None for p in module.bert.encoder.layer[0].parameters())
