"""Layers that cannot be traced, and operations of one's own: they are left alone and named, and the rest is pruned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lissome.compress.prune import PruneConfig, groups, prune
from lissome.compress.prune.find import silenced
from tests.compress.prune.test_groups import found, reasons, told

DATA = "it cannot be traced: its control flow, a number or a shape depends on the data"


@torch.library.custom_op("lissome_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@doubled.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("lissome_tests::tripled", mutates_args=())
def tripled(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@torch.library.custom_op("lissome_tests::halve", mutates_args=("x",))
def halve(x: torch.Tensor) -> None:
    x.mul_(0.5)


class Branch(nn.Module):
    """Goes one of two ways, by its data; only one of them has a layer."""

    def __init__(self):
        super().__init__()
        self.way = nn.Linear(8, 8)

    def forward(self, x):
        return self.way(x) if x.sum() > 0 else -x


class Picks(nn.Module):
    """Gives as many rows as are positive."""

    def forward(self, x):
        return x[x.sum(-1) != 0]


class Scales(nn.Module):
    """Takes a number out of the graph."""

    def forward(self, x):
        return x * float(x.mean())


class Foreign(nn.Module):
    """Leaves torch."""

    def forward(self, x):
        return torch.from_numpy(x.numpy() * 2)


class Doubles(nn.Module):
    """Calls an operation of one's own."""

    def forward(self, x):
        return doubled(x)


class Triples(nn.Module):
    """Calls an operation of one's own of which torch knows no shapes."""

    def forward(self, x):
        return tripled(x)


class Writes(nn.Module):
    """Has an operation of one's own write into a tensor."""

    def forward(self, x):
        x = x.clone()
        halve(x)
        return x


class Beside(nn.Module):
    """A layer of any kind between two that are followed."""

    def __init__(self, side):
        super().__init__()
        self.a, self.side, self.b, self.c = nn.Linear(6, 8), side, nn.Linear(8, 10), nn.Linear(10, 2)

    def forward(self, x):
        return self.c(torch.relu(self.b(self.side(self.a(x)))))


def beside(side):
    torch.manual_seed(0)
    return Beside(side).eval()


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("side", "reason"),
    [
        (Branch(), DATA),
        (Picks(), DATA),
        (Scales(), DATA),
        (Foreign(), "it cannot be traced: .numpy()"),
        (Triples(), "it cannot be traced: There was no fake impl registered for <CustomOpDef(lissome_tests::tripled)>"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_that_cannot_be_traced_is_named_and_the_rest_pruned(side, reason, capfd):
    module = beside(side)
    listed = found(module, x=X)
    assert told(listed) == {"b": (10, "neurons")}
    assert reasons(listed)["side"].startswith(reason)
    assert reasons(listed)["a"] == "it reaches the layer side, which cannot be traced"
    assert not any(capfd.readouterr()), "torch prints the graph of what it could not trace"
    smaller = prune(module, PruneConfig(ratio=0.5, round_to=1), {"x": X})
    kept = [unit for unit in range(10) if any(torch.equal(module.b.weight[unit], row) for row in smaller.module.b.weight)]
    quiet = silenced(module, [(listed["b"], kept)])
    with torch.no_grad():
        for x in (X, -X):  # both ways
            torch.testing.assert_close(smaller.module(x), quiet(x))


@pytest.mark.parametrize("side", [Doubles(), Writes()], ids=["gives", "writes"])
def test_an_operation_of_ones_own_is_named_and_the_rest_pruned(side):
    listed = found(beside(side), x=X)
    name = "halve" if isinstance(side, Writes) else "doubled"
    assert told(listed) == {"b": (10, "neurons")}
    assert reasons(listed)["a"] == f"it reaches the operation lissome_tests.{name}, which pruning does not follow"


def test_the_model_is_left_as_it_was():
    module = beside(Branch())
    groups(module, {"x": X})
    for layer in module.modules():
        assert "forward" not in vars(layer)
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks


def test_weights_that_such_a_layer_shares_stay():
    class Tied(Beside):
        def __init__(self, side):
            super().__init__(side)
            self.after = nn.Linear(8, 8)
            self.after.weight = side.way.weight

        def forward(self, x):
            x = torch.relu(self.after(torch.relu(self.side(self.a(x)))))
            return self.c(torch.relu(self.b(x)))

    torch.manual_seed(0)
    listed = found(Tied(Branch()).eval(), x=X)
    assert told(listed) == {"b": (10, "neurons")}
    assert reasons(listed)["after"] == "the layer side uses it, which cannot be traced"


class Around(nn.Module):
    """A layer of its own data-dependent code around another, called twice, with outputs of any structure."""

    def __init__(self):
        super().__init__()
        self.inner = Branch()

    def forward(self, x, *, scale):
        x = self.inner(self.inner(x))
        return {"x": (x if x.sum() > 0 else -x) * scale, "none": None}


class Nested(nn.Module):
    """`Around` in blocks with a shortcut; the blocks' own layers can be pruned."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.around = nn.Linear(8, 12), nn.Linear(12, 8), Around()

        def forward(self, x):
            return x + self.around(self.down(torch.relu(self.up(x))), scale=torch.ones(1))["x"]

    def __init__(self):
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(6, 8), nn.ModuleList(self.Block() for _ in range(2)), nn.Linear(8, 2)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def test_nested_layers_are_taken_out_from_the_inside():
    torch.manual_seed(0)
    listed = found(Nested().eval(), x=X)
    assert told(listed) == {"blocks.0.up": (12, "neurons"), "blocks.1.up": (12, "neurons")}
    assert [group.blocks for group in listed if group.kind == "blocks"] == [(0, 1)]
    assert [one.name for one in listed.left[:4]] == ["blocks.0.around.inner", "blocks.0.around", "blocks.1.around.inner", "blocks.1.around"]
    assert {one.reason for one in listed.left[:4]} == {DATA}


class Gated(nn.Module):
    """Blocks, one of which cannot be traced; whether a shortcut leads around it cannot be seen."""

    class Block(nn.Module):
        def __init__(self, branches):
            super().__init__()
            self.a, self.branches = nn.Linear(6, 6), branches

        def forward(self, x):
            return x + self.a(x) if not self.branches or x.sum() > 0 else self.a(x)

    def __init__(self):
        super().__init__()
        self.blocks, self.out = nn.ModuleList(self.Block(i == 1) for i in range(3)), nn.Linear(6, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def test_a_block_that_cannot_be_traced_stays():
    listed = found(Gated(), x=X)
    assert [group.blocks for group in listed if group.kind == "blocks"] == [(0, 2)]
    assert [(one.name, one.reason) for one in listed.left if one.name == "blocks.1"] == [("blocks.1", DATA), ("blocks.1", "no shortcut leads around it")]
