from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import nn

from lissome.core.errors import BadModel
from lissome.nn.fingerprint import check_finite, fingerprint
from tests.nn.tiny import bert, cnn, mlp


class Tied(nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def test_equal_for_equal_weights():
    assert fingerprint(mlp()) == fingerprint(mlp()) == fingerprint(copy.deepcopy(mlp()))
    assert fingerprint(bert()) == fingerprint(bert())
    assert fingerprint(bert()) != fingerprint(bert(seed=1))


@pytest.mark.parametrize("name", ["first.weight", "head.bias"])
@pytest.mark.parametrize("index", [0, -1])
def test_one_bit_changes_it(name, index):
    module = mlp()
    before = fingerprint(module)
    bits = module.get_parameter(name).data.view(-1).view(torch.int32)
    bits[index] ^= 1
    assert fingerprint(module) != before
    bits[index] ^= 1
    assert fingerprint(module) == before


def test_the_sign_of_zero_counts():
    module = mlp()
    with torch.no_grad():
        module.head.bias.zero_()
        before = fingerprint(module)
        module.head.bias.neg_()
    assert fingerprint(module) != before


def test_buffers_count():
    module = cnn()
    before = fingerprint(module)
    module.stem[1].running_mean[0] += 1
    assert fingerprint(module) != before


def test_shape_dtype_and_name_count():
    torch.manual_seed(0)
    a, b = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)
    b.weight.data = a.weight.data.reshape(4, 6)
    assert fingerprint(a) != fingerprint(b)
    assert fingerprint(mlp()) != fingerprint(mlp().half())
    assert fingerprint(nn.Sequential(nn.ReLU(), a)) != fingerprint(nn.Sequential(a, nn.ReLU()))


def test_tied_weights():
    tied = Tied()
    before = fingerprint(tied)
    assert before == fingerprint(copy.deepcopy(tied))
    with torch.no_grad():
        tied.a.weight[0, 0] += 1
    assert fingerprint(tied) != before


def test_a_view_that_starts_at_the_same_byte_is_hashed_too():
    first, second = nn.Module(), nn.Module()
    for module in (first, second):
        whole = torch.arange(6.0)
        module.register_buffer("a", whole[:2])
        module.register_buffer("b", whole)
    second.b[5] = 9.0
    assert fingerprint(first) != fingerprint(second)


def test_settings_without_weights_count():
    torch.manual_seed(0)
    a, b = nn.Conv2d(1, 2, 3, stride=1), nn.Conv2d(1, 2, 3, stride=2)
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) != fingerprint(b)


@pytest.mark.parametrize("change", [{"num_attention_heads": 4}, {"hidden_act": "relu"}, {"layer_norm_eps": 1e-3}])
def test_config_counts(change):
    assert fingerprint(bert(**change)) != fingerprint(bert())


def test_names_of_labels_do_not_count():
    module = bert()
    before = fingerprint(module)
    module.config.id2label = {0: "bad", 1: "good"}
    module.config._name_or_path = "elsewhere"
    assert fingerprint(module) == before


def test_the_code_of_forward_counts(tmp_path, monkeypatch):
    code = "import torch\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n        return super().forward(x){}\n"
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {}
    for name, tail in (("fingerprinted_a", ""), ("fingerprinted_b", " / 2"), ("fingerprinted_c", "")):
        (tmp_path / f"{name}.py").write_text(code.format(tail))
        torch.manual_seed(0)
        found[name] = fingerprint(importlib.import_module(name).Net(3, 3))
    assert found["fingerprinted_a"] == found["fingerprinted_c"] != found["fingerprinted_b"]


def test_a_class_without_source_is_known_by_its_name():
    scope: dict = {"torch": torch}
    exec("class Typed(torch.nn.Linear):\n    pass", scope)
    torch.manual_seed(0)
    assert len(fingerprint(scope["Typed"](3, 3))) == 16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_weights_are_named(value):
    module = mlp()
    with torch.no_grad():
        module.second.weight[3, 5:7] = value
    with pytest.raises(BadModel) as error:
        check_finite(module, "model.safetensors")
    assert str(error.value).startswith("model.safetensors: the weights hold NaN or infinity: 2 of 2304 values in second.weight.")
    assert "earlier checkpoint" in str(error.value)


def test_buffers_may_hold_infinity_but_not_nan():
    module = mlp()
    module.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
    check_finite(module, "x")
    module.register_buffer("scale", torch.tensor([1.0, float("nan")]))
    with pytest.raises(BadModel, match="1 of 2 values in scale"):
        check_finite(module, "x")
