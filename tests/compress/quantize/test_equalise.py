from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lissome.compress.batches import forward
from lissome.compress.quantize.calibrate import extremes
from lissome.compress.quantize.equalise import absorb_norms, folds, smooth
from lissome.compress.quantize.wiring import trace
from lissome.train.batches import ordered
from tests.compress.quantize.conftest import batches_of
from tests.nn import tiny


class Block(nn.Module):
    """A pre-norm block: norm -> attention -> norm -> two linear layers with a ReLU, each around a shortcut."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.heads = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), heads

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.o(h)
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class PostNorm(nn.Module):
    """The norm's output goes around the layer too, so it may not be scaled."""

    def __init__(self):
        super().__init__()
        self.norm, self.line = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        h = self.norm(x)
        return h + self.line(h)


def linears(module):
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]


def smoothed(module, batch, alpha):
    """A smoothed copy and the folds applied."""
    copied = copy.deepcopy(module).eval()
    found = list(folds(copied, trace(copied, batch), linears(copied)))
    targets = [name for fold in found for name in fold.targets]
    seen = extremes(copied, ordered([batch]), [(name, "input") for name in targets], targets)
    return copied, smooth(copied, batch, found, seen.channels, alpha), seen.channels


@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_smoothing_is_exact_in_float(seed, alpha):
    torch.manual_seed(seed)
    module = Block().eval()
    with torch.no_grad():
        for norm in (module.norm1, module.norm2):
            norm.weight.uniform_(0.5, 20)
            norm.bias.normal_()
    copied, applied, _ = smoothed(module, torch.randn(2, 5, 16), alpha)
    assert {(fold.source, fold.targets) for fold in applied} == {("norm1", ("k", "q", "v")), ("norm2", ("up",)), ("up", ("down",)), ("v", ("o",))}
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(copied(x), module(x), rtol=1e-3, atol=1e-3)


def test_smoothing_evens_the_inputs_out():
    torch.manual_seed(0)
    module = Block().eval()
    with torch.no_grad():
        module.norm1.weight[3] = 100
    batch = torch.randn(4, 9, 16)
    copied, _, before = smoothed(module, batch, 0.5)
    after = extremes(copied, ordered([batch]), [("q", "input")], ["q"]).channels["q"]
    assert after.max() / after.median() < 0.3 * before["q"].max() / before["q"].median()


FINGERPRINT = """
import torch
from lissome.compress.quantize import QuantizeConfig, quantize
from tests.compress.quantize.test_equalise import Block
torch.set_num_threads(1)
torch.manual_seed(0)
module = torch.nn.Sequential(Block(), Block())
config = QuantizeConfig(smallest=1, smooth=0.5, method="minmax")
print(quantize(module, config, [torch.randn(8, 5, 16)]).fingerprint)
"""


def test_every_process_smooths_in_the_same_order():
    """Folds chain (norm -> up, up -> down), so the order decides the weights; Python orders sets of strings anew in every process."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])}
    runs = [
        subprocess.Popen([sys.executable, "-c", FINGERPRINT], env={**env, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True) for seed in ("1", "2")
    ]
    found = [run.communicate()[0].strip() for run in runs]
    assert len(found[0]) == 16
    assert found[0] == found[1]


def test_what_is_used_elsewhere_is_left_alone():
    module = PostNorm().eval()
    assert list(folds(module, trace(module, torch.randn(2, 8)), ["line"])) == []
    bert = tiny.bert().eval()
    found = {fold.source for fold in folds(bert, trace(bert, batches_of("bert", 1)[0]), linears(bert))}
    assert found == {f"bert.encoder.layer.{i}.attention.self.value" for i in range(2)}, "post-norm blocks with GELU offer nothing else"


def test_a_misread_fold_is_undone():
    from lissome.compress.quantize.equalise import Fold

    module = PostNorm().eval()
    before, batch = copy.deepcopy(module.state_dict()), torch.randn(2, 8)
    assert smooth(module, batch, [Fold("norm", ("line",))], {"line": torch.full((8,), 50.0)}, 0.5) == []
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_norms_are_absorbed_exactly():
    module, batch = tiny.cnn(), batches_of("cnn", 1)[0]
    copied = copy.deepcopy(module)
    norms = absorb_norms(copied, trace(copied, batch))
    assert norms["stem.0"] == "stem.1"
    assert len(norms) == sum(isinstance(layer, nn.Conv2d) for layer in module.modules())
    torch.testing.assert_close(forward(copied, batch), forward(module, batch), rtol=1e-4, atol=1e-5)
    x = torch.randn(2, 8, 12, 12)
    offset = copied.stem[1](x) - x
    torch.testing.assert_close(offset, copied.stem[1].bias.view(1, -1, 1, 1).expand_as(x), rtol=1e-4, atol=1e-5)
    assert copied.state_dict().keys() == module.state_dict().keys(), "the architecture is the same"


class Shared(nn.Module):
    """The convolution's own result is used beside the norm's."""

    def __init__(self, bias):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 3, 1, bias=bias), nn.BatchNorm1d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class Biased(Shared):
    def forward(self, x):
        return self.norm(self.conv(x))


@pytest.mark.parametrize("bias", [True, False])
def test_norms_that_may_not_be_absorbed(bias):
    torch.manual_seed(0)
    batch = torch.randn(4, 2, 6)
    for kind, expected in ((Shared, {}), (Biased, {"conv": "norm"})):
        module = kind(bias)
        module(batch)
        module.eval()
        before = module(batch)
        assert absorb_norms(module, trace(module, batch)) == expected
        torch.testing.assert_close(module(batch), before, rtol=1e-4, atol=1e-5)
