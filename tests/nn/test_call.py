from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lissome.core.errors import BadModel
from lissome.nn.call import Positional, accepted, by_name, call, output_tensor, unfused
from tests.nn.tiny import bert, tensors, texts


class Named(nn.Module):
    def forward(self, input_ids, attention_mask=None):
        return input_ids.float() if attention_mask is None else input_ids.float() * attention_mask


class Plain(nn.Module):
    def forward(self, x):
        return x * 2


class Two(nn.Module):
    def forward(self, x, y=None):
        return x if y is None else x - y


class Bag(nn.Module):
    def forward(self, **inputs):
        return inputs["a"] - inputs["b"]


class Loose(nn.Module):
    def forward(self, *inputs):
        return inputs[0] - inputs[1]


class First(nn.Module):
    def forward(self, x, /):
        return x + 1


class Needy(nn.Module):
    def forward(self, input_ids, images):
        return input_ids


A, B = torch.tensor([[5.0, 7.0]]), torch.tensor([[1.0, 0.0]])


def test_by_name_in_any_order():
    assert torch.equal(call(Named(), {"attention_mask": B, "input_ids": A}), A * B)


def test_inputs_the_model_does_not_take_are_left_out():
    inputs = {"input_ids": A, "token_type_ids": B, "attention_mask": B}
    assert accepted(Named(), tuple(inputs)) == ("input_ids", "attention_mask")
    assert torch.equal(call(Named(), inputs), A * B)


def test_optional_inputs_may_be_absent():
    assert torch.equal(call(Named(), {"input_ids": A}), A)


def test_by_position_where_no_name_fits():
    assert torch.equal(call(Plain(), {"images": A}), A * 2)
    assert torch.equal(call(Two(), {"left": A, "right": B}), A - B)
    assert torch.equal(call(Two(), {"left": A}), A)


def test_keywords_only():
    assert by_name(Bag(), ("a", "b"))
    assert torch.equal(call(Bag(), {"b": B, "a": A}), A - B)


def test_star_arguments_take_everything_by_position():
    assert torch.equal(call(Loose(), {"a": A, "b": B}), A - B)


def test_positional_only_parameters_are_not_names():
    assert torch.equal(call(First(), {"x": A}), A + 1)


def test_missing_required_input():
    with pytest.raises(BadModel) as error:
        call(Needy(), {"input_ids": A, "attention_mask": B})
    assert "needs the input 'images', which the task does not give" in str(error.value)
    assert "input_ids, attention_mask" in str(error.value)


@pytest.mark.parametrize(("module", "names"), [(Plain(), ("a", "b")), (Two(), ("a", "b", "c"))])
def test_too_many_inputs_by_position(module, names):
    with pytest.raises(BadModel) as error:
        accepted(module, names)
    assert f"the task gives ({', '.join(names)})" in str(error.value)
    assert "forward takes (x" in str(error.value)


def test_too_few_inputs_by_position():
    with pytest.raises(BadModel, match=r"forward takes \(input_ids, images\), the task gives \(pixels\)"):
        accepted(Needy(), ("pixels",))


@pytest.mark.parametrize("output", [A, SimpleNamespace(logits=A), {"logits": A, "loss": B}, (A, B)])
def test_one_output_tensor(output):
    assert output_tensor(output) is A


@pytest.mark.parametrize(("output", "kind"), [(None, "NoneType"), ({"hidden": A}, "dict"), ((), "tuple"), ([A], "list"), (("a", A), "tuple"), (3.0, "float")])
def test_no_output_tensor(output, kind):
    with pytest.raises(BadModel) as error:
        output_tensor(output)
    assert f"returns {kind}, in which no output tensor was found" in str(error.value)
    assert "task head" in str(error.value)


def test_hugging_face_model():
    module, inputs = bert(labels=3), tensors(texts(2, 7))
    with torch.no_grad():
        expected = module(**inputs).logits
        assert torch.equal(call(module, inputs), expected)
        assert torch.equal(call(module, {**inputs, "special": inputs["input_ids"]}), expected)
        names = accepted(module, ("attention_mask", "input_ids"))
        assert torch.equal(Positional(module, names)(inputs["attention_mask"], inputs["input_ids"]), expected)


def test_positional_wants_every_input():
    with pytest.raises(ValueError, match="shorter"):
        Positional(Named(), ("input_ids", "attention_mask"))(A)
    assert torch.equal(Positional(Plain(), ("images",))(A), A * 2)


def test_unfused_calls_the_layers_and_puts_torchs_setting_back():
    layer, ran = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval(), []
    layer.linear1.forward = lambda x, plain=layer.linear1.forward: (ran.append(1), plain(x))[1]  # a hook would keep torch from its kernel already
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        fused = layer(x)
        assert not ran
        with unfused():
            torch.testing.assert_close(layer(x), fused)
        assert ran == [1]
        layer(x)
    assert ran == [1]
