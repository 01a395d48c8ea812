"""A freshly built module becomes as small as the plan says, and a plan that does not fit it is refused."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from lissome.core.errors import BadModel
from lissome.core.model import Resize
from lissome.nn.resize import keep_blocks, replace_tensors, resize, tensors


class Layer(nn.Module):
    def __init__(self, layer_idx: int):
        super().__init__()
        self.layer_idx, self.dense = layer_idx, nn.Linear(4, 6)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(i) for i in range(4))
        self.tail = nn.Sequential(OrderedDict(first=nn.Linear(6, 6), norm=nn.LayerNorm(6), last=nn.Linear(6, 2)))
        self.tied = nn.Linear(4, 6, bias=False)
        self.tied.weight = self.layers[1].dense.weight
        self.register_buffer("scale", torch.ones(6))
        self.register_buffer("scratch", torch.ones(6), persistent=False)
        self.num_heads, self.name, self.flag = 3, "stack", True


def refusal(**plan: object) -> str:
    with pytest.raises(BadModel) as error:
        resize(Stack(), Resize(**plan))
    assert "prune it again" in str(error.value)
    return str(error.value)


def test_everything_at_once():
    module = Stack()
    resize(
        module,
        Resize(
            blocks={"layers": (1, 3)},
            attributes={"": {"num_heads": 2}, "layers.1.dense": {"out_features": 5}, "tail.norm": {"normalized_shape": (5,)}},
            shapes={"layers.1.dense.weight": (5, 4), "layers.1.dense.bias": (5,), "scale": (5,), "tail.norm.weight": (5,)},
        ),
    )
    assert len(module.layers) == 2
    assert [layer.layer_idx for layer in module.layers] == [0, 1]
    assert (module.num_heads, module.layers[1].dense.out_features, module.tail.norm.normalized_shape) == (2, 5, (5,))
    assert {name: tuple(value.shape) for name, value in module.state_dict().items() if 5 in value.shape} == {
        "layers.1.dense.weight": (5, 4),
        "layers.1.dense.bias": (5,),
        "scale": (5,),
        "tail.norm.weight": (5,),
    }
    assert isinstance(module.layers[1].dense.weight, nn.Parameter)


def test_an_empty_plan_changes_nothing():
    module = Stack()
    before = {name: id(tensor) for name, tensor in tensors(module).items()}
    resize(module, Resize())
    assert {name: id(tensor) for name, tensor in tensors(module).items()} == before


@pytest.mark.parametrize("first", ["tied.weight", "layers.1.dense.weight"])
def test_tied_weights_are_replaced_together(first):
    module = Stack()
    replace_tensors(module, {first: torch.zeros(2, 4), "tied.weight": torch.zeros(2, 4)})
    assert module.tied.weight is module.layers[1].dense.weight
    assert module.tied.weight.shape == (2, 4)


def test_frozen_weights_stay_frozen():
    module = Stack()
    module.tail.first.weight.requires_grad_(False)
    replace_tensors(module, {"tail.first.weight": torch.zeros(3, 6), "tail.last.weight": torch.zeros(2, 3)})
    assert [p.requires_grad for p in (module.tail.first.weight, module.tail.last.weight)] == [False, True]


def test_buffers_that_are_not_saved_are_no_tensors():
    assert "scale" in tensors(Stack())
    assert "scratch" not in tensors(Stack())


def test_named_children_keep_their_names():
    module = Stack()
    keep_blocks(module, "tail", [0, 2])
    assert [name for name, _ in module.tail.named_children()] == ["first", "last"]
    assert module.tail(torch.zeros(1, 6)).shape == (1, 2)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"blocks": {"nowhere": (0,)}}, 'names the layer "nowhere", which Stack does not have'),
        ({"blocks": {"tied": (0,)}}, 'drops blocks of "tied", which is a Linear'),
        ({"blocks": {"layers": (0, 4)}}, 'keeps the blocks [0, 4] of "layers", which has 4'),
        ({"blocks": {"layers": (1, 0)}}, "keeps the blocks [1, 0]"),
        ({"blocks": {"layers": ()}}, "keeps the blocks []"),
        ({"blocks": {"layers": (-1, 2)}}, "keeps the blocks [-1, 2]"),
        ({"attributes": {"": {"num_heads": 4}}}, 'sets "num_heads" of "" to 4; it is built as 3, and pruning only makes it smaller'),
        ({"attributes": {"": {"num_heads": 0}}}, 'sets "num_heads" of "" to 0'),
        ({"attributes": {"": {"name": 1}}}, 'sets "name" of "" to 1, but it is \'stack\''),
        ({"attributes": {"": {"flag": 1}}}, 'sets "flag" of "" to 1, but it is True'),
        ({"attributes": {"": {"forward": 1}}}, 'sets "forward" of ""'),
        ({"attributes": {"": {"absent": 1}}}, 'sets "absent" of "" to 1, but it is None'),
        ({"attributes": {"tail.norm": {"normalized_shape": (7,)}}}, 'sets "normalized_shape" of "tail.norm" to (7,); it is built as (6,)'),
        ({"attributes": {"tail.norm": {"normalized_shape": 5}}}, 'sets "normalized_shape" of "tail.norm" to 5, but it is (6,)'),
        ({"attributes": {"nowhere": {"in_features": 1}}}, 'names the layer "nowhere"'),
        ({"shapes": {"absent.weight": (1,)}}, 'names the weight "absent.weight", which Stack does not have'),
        ({"shapes": {"scale": (7,)}}, 'gives "scale" the shape [7], but it is built as [6]'),
        ({"shapes": {"scale": (0,)}}, 'gives "scale" the shape [0]'),
        ({"shapes": {"scale": (2, 3)}}, 'gives "scale" the shape [2, 3]'),
        ({"shapes": {"scratch": (5,)}}, 'names the weight "scratch"'),
    ],
)
def test_a_plan_that_does_not_fit(plan, expected):
    assert f"architecture.json: the pruning plan {expected}" in refusal(**plan)
