from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lissome.core.errors import BadModel
from lissome.export.program import export_program
from tests.nn import tiny


@pytest.fixture(scope="module")
def traced_bert():
    module = tiny.bert(labels=3)
    return module, export_program(module, tiny.texts(2, 9), variable_length=True).module()


@pytest.fixture(scope="module")
def traced_cnn():
    module = tiny.cnn()
    return module, export_program(module, tiny.images(2), variable_length=False).module()


@given(batch=st.integers(1, 9), length=st.integers(2, tiny.LENGTH), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_any_batch_and_length(traced_bert, batch, length, seed):
    module, traced = traced_bert
    inputs = tiny.tensors(tiny.texts(batch, length, seed))
    with torch.no_grad():
        assert torch.allclose(traced(*inputs.values()), module(**inputs).logits, atol=1e-5)


@given(batch=st.integers(1, 9), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_any_batch_of_images(traced_cnn, batch, seed):
    module, traced = traced_cnn
    x = torch.from_numpy(tiny.images(batch, seed)["images"])
    with torch.no_grad():
        assert torch.allclose(traced(x), module(x), atol=1e-5)


def test_the_size_of_images_stays_fixed(traced_cnn):
    with pytest.raises(AssertionError, match="Guard failed"):
        traced_cnn[1](torch.zeros(2, 1, 14, 14))


@pytest.mark.parametrize("length", [2, 32, tiny.LENGTH])
def test_lengths_that_coincide_with_other_sizes(length):
    """As long as the batch is large, as the model is wide, as its longest text: still free."""
    module = tiny.bert()
    traced = export_program(module, tiny.texts(2, length), variable_length=True).module()
    inputs = tiny.tensors(tiny.texts(3, 7))
    with torch.no_grad():
        assert torch.allclose(traced(*inputs.values()), module(**inputs).logits, atol=1e-5)


def test_only_the_inputs_the_model_takes_in_the_batchs_order():
    class Reordered(nn.Module):
        def forward(self, b, a):
            return a - 2 * b

    arrays = {name: np.full((2, 3), value, np.float32) for name, value in {"a": 5, "unused": 9, "b": 1}.items()}
    traced = export_program(Reordered(), arrays, variable_length=False).module()
    assert torch.equal(traced(torch.full((4, 3), 5.0), torch.full((4, 3), 1.0)), torch.full((4, 3), 3.0))


class Branching(nn.Module):
    def forward(self, features):
        return features if features.sum() > 0 else -features


class OneBatchOnly(nn.Module):
    def forward(self, features):
        return features.reshape(2, 24)


class NoTensor(nn.Module):
    def forward(self, features):
        return {"hidden": features}


@pytest.mark.parametrize(("module", "reason"), [(Branching(), "data-dependent"), (OneBatchOnly(), "")])
def test_what_cannot_be_traced_says_why(module, reason):
    with pytest.raises(BadModel) as error:
        export_program(module, tiny.rows(2), variable_length=False)
    text = str(error.value)
    assert text.startswith("the model cannot be traced by torch.export: ")
    assert reason in text
    assert len(text.splitlines()[0]) > 60
    assert "torch itself can still run it" in text


def test_what_lissome_itself_refuses_is_said_in_its_own_words():
    with pytest.raises(BadModel, match="the model returns dict, in which no output tensor was found"):
        export_program(NoTensor(), tiny.rows(2), variable_length=False)
