"""torch-pruning (Fang et al. 2023) finds the same groups, and cutting them leaves the same weights and outputs."""

from __future__ import annotations

import copy

import pytest
import torch

from lissome.compress.prune import apply
from tests.compress.prune import zoo
from tests.compress.prune.zoo import found

peer = pytest.importorskip("torch_pruning")
pytestmark = pytest.mark.peer


def cut_by_peer(name, layers, gone):
    """The module after torch-pruning has removed the units `gone` of each layer's output."""
    module = copy.deepcopy(zoo.model(name).module)
    example = next(iter(zoo.example(name).values()))
    graph = peer.DependencyGraph().build_dependency(module, example_inputs=example)
    for layer, units in layers.items():
        target = module.get_submodule(layer)
        prune = peer.prune_linear_out_channels if isinstance(target, torch.nn.Linear) else peer.prune_conv_out_channels
        graph.get_pruning_group(target, prune, idxs=gone(units)).prune()
    with torch.no_grad():
        return module, module(example)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("cnn", ["stem.0", "blocks.0.conv1", "blocks.1.conv2", "blocks.2.conv2"]),
        ("joined", ["stem", "deep", "side", "merge", "head"]),
        ("mixed", ["deep", "head"]),
    ],
)
def test_same_weights_and_outputs(name, layers):
    model, listed = found(name)
    gone = lambda units: [0, units // 2, units - 1]  # noqa: E731
    pruned = apply(model, listed, {layer: [u for u in range(listed[layer].units) if u not in gone(listed[layer].units)] for layer in layers})
    check(name, pruned, *cut_by_peer(name, {layer: listed[layer].units for layer in layers}, gone))


def test_grouped_convolutions_lose_the_same_weights():
    """torch-pruning is told all channels of a unit; the unit is the same place in each group of the convolution."""
    model, listed = found("joined")
    assert listed["grouped"].units == 8
    check("joined", apply(model, listed, {"grouped": range(1, 8)}), *cut_by_peer("joined", {"grouped": 32}, lambda units: [0, 8, 16, 24]))


def check(name, pruned, expected, output):
    state = expected.state_dict()
    assert {key: tuple(value.shape) for key, value in pruned.module.state_dict().items()} == {key: tuple(value.shape) for key, value in state.items()}
    assert all(torch.equal(value, state[key]) for key, value in pruned.module.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(pruned.module(next(iter(zoo.example(name).values()))), output)
