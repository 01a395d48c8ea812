from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from lissome.cli.main import run as command
from lissome.compress.sparse import SparseConfig, SparseTaskConfig, parse_pattern, sparse_train, sparsify_for_task, sparsity_of, speaks
from lissome.compress.sparse.masks import as_matrix, as_weight, masks
from lissome.compress.sparse.run import Zeroing, sparse_weights
from lissome.core.cache import Cache
from lissome.core.errors import BadConfig, BadModel, Diverged
from lissome.nn.load import as_model, load_model
from lissome.train.callbacks import Callback
from lissome.train.config import TrainConfig
from lissome.train.loop import train
from tests.nn.tiny import cnn
from tests.train.small import bits, loader, loss, number_task, small

WIDE = SparseConfig(least=0)


class Net(nn.Module):
    """8 numbers -> 3 classes; sides that every pattern below divides."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def plain_mask(scores: np.ndarray, pattern: str, share: float) -> np.ndarray:
    """The reference: one weight, group or block after another, with numpy."""
    rows, columns = scores.shape
    kept = np.zeros(scores.shape, dtype=bool)
    if ":" in pattern:
        m = int(pattern.split(":")[1])
        count = math.ceil(round((1 - share) * m, 6))
        for r in range(rows):
            for c in range(0, columns, m):
                for best in sorted(range(m), key=lambda i: -scores[r, c + i])[:count]:
                    kept[r, c + best] = True
        return kept
    high, wide = (1, 1) if pattern == "unstructured" else map(int, pattern.split("x"))
    corners = [(r, c) for r in range(0, rows, high) for c in range(0, columns, wide)]
    means = [scores[r : r + high, c : c + wide].mean() for r, c in corners]
    for i in np.argsort(means)[::-1][: round((1 - share) * len(corners))]:
        r, c = corners[i]
        kept[r : r + high, c : c + wide] = True
    return kept


@settings(max_examples=60, deadline=None)
@given(pattern=st.sampled_from(["unstructured", "2:4", "1:4", "3:8", "1x4", "16x1", "4x4", "2x8"]), share=st.floats(0, 0.99), seed=st.integers(0, 10**6))
def test_masks_equal_the_plain_ones(pattern, share, seed):
    scores = np.random.default_rng(seed).normal(size=(16, 24))  # no two blocks alike
    found = masks({"w": torch.from_numpy(scores)}, parse_pattern(pattern), share)["w"]
    assert np.array_equal(found.numpy(), plain_mask(scores, pattern, share))


@settings(deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=2, max_size=5))
def test_a_weight_is_seen_as_a_matrix_and_back(shape):
    weight = torch.arange(math.prod(shape)).reshape(shape)
    matrix = as_matrix(weight)
    assert matrix.shape == (shape[0], math.prod(shape[1:]))
    assert torch.equal(matrix[0, : shape[1]], weight[0].reshape(shape[1], -1)[:, 0]), "neighbours are the inputs at one place"
    assert torch.equal(as_weight(matrix, weight.shape), weight)


def test_a_conv_keeps_two_of_four_along_its_inputs():
    weight = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    kept = masks({"w": weight.abs()}, parse_pattern("2:4"), 0.5)["w"]
    assert (kept.reshape(6, 2, 4, 3, 3).sum(dim=2) == 2).all()


def test_layers_compete_when_compared_together():
    scores = {"strong": torch.linspace(10, 11, 100).reshape(10, 10), "weak": torch.linspace(0, 1, 100).reshape(10, 10)}
    kept = masks(scores, parse_pattern("unstructured"), 0.6, together=True)
    assert int(kept["strong"].sum()) == 78
    assert int(kept["weak"].sum()) == 2, "a layer keeps at least 2 %"


@settings(max_examples=50, deadline=None)
@given(schedule=st.sampled_from(["cubic", "step", "constant"]), sparsity=st.floats(0.1, 0.95), stages=st.integers(1, 6), begin=st.floats(0, 0.4))
def test_the_share_never_falls_and_ends_at_its_target(schedule, sparsity, stages, begin):
    config = SparseConfig(sparsity=sparsity, schedule=schedule, stages=stages, begin=begin, end=0.8)
    shares = [config.share(i / 100) for i in range(101)]
    assert shares == sorted(shares)
    assert all(share == 0 for i, share in enumerate(shares) if i / 100 < begin)
    assert all(share == sparsity for share in shares[80:])


def test_cubic_is_zhu_and_guptas_formula_and_step_has_its_stages():
    config = SparseConfig(sparsity=0.9, begin=0.2, end=0.7)
    assert config.share(0.45) == pytest.approx(0.9 + (0.0 - 0.9) * (1 - (0.45 - 0.2) / (0.7 - 0.2)) ** 3)
    step = SparseConfig(sparsity=0.8, schedule="step", stages=4, begin=0.0, end=0.8)
    assert [round(step.share(done), 6) for done in (0.1, 0.25, 0.45, 0.65, 0.8)] == [0.0, 0.2, 0.4, 0.6, 0.8]


@pytest.mark.parametrize(("pattern", "share"), [("unstructured", 0.75), ("2:4", 0.5), ("1:4", 0.75), ("1x4", 0.75), ("8x8", 0.75)])
@pytest.mark.parametrize("saliency", ["magnitude", "gradient"])
def test_training_ends_with_the_zeros_that_were_asked_for(pattern, share, saliency):
    module = net()
    before = bits(module)
    config = SparseConfig(pattern=pattern, sparsity=0.75, saliency=saliency, every=2, least=0, skip=("head",))
    made = sparse_train(module, loss, loader(), config, TrainConfig(epochs=4, lr=0.02, precision="fp32"))
    rows = {row.name: row for row in sparsity_of(made, config)}
    assert bits(module) == before, "the module given is left as it was"
    assert rows["head"].zeros == 0
    assert rows["head"].left == "as configured"
    for name in ("first", "second"):
        assert rows[name].share == pytest.approx(share)
        weight = dict(made.module.named_modules())[name].weight
        assert torch.equal(weight == 0, ~masks({"w": (weight != 0).float()}, parse_pattern(pattern), share)["w"]), "the zeros lie in the pattern"


def test_zeros_are_there_after_every_step_and_fixed_at_the_end():
    module, seen = net(), []
    config = SparseConfig(sparsity=0.8, every=2, end=0.5, least=0)
    zeroing = Zeroing(sparse_weights(module, config), config)

    class Watch(Callback):
        def on_step(self, run):
            seen.append({name: (weight == 0) for name, weight in zeroing.weights.items()})
            assert all(torch.equal(zeros, ~zeroing.masks[name]) for name, zeros in seen[-1].items())

    with zeroing:
        train(module, loader(), loss, TrainConfig(steps=20, lr=0.05, precision="fp32"), callbacks=[zeroing, Watch()])
    shares = [int(one["first"].sum()) / 256 for one in seen]
    assert shares == sorted(shares)
    assert shares[9] == pytest.approx(0.8, abs=0.01)
    assert all(torch.equal(one["first"], seen[9]["first"]) for one in seen[10:])


def test_movement_is_the_sum_of_minus_weight_times_gradient():
    module = nn.Sequential(nn.Linear(4, 4, bias=False))
    config = SparseConfig(saliency="gradient", least=0, begin=0.5)
    zeroing = Zeroing(sparse_weights(module, config), config)
    expected = torch.zeros(4, 4)
    with zeroing:
        for seed in range(3):
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
            module(x).square().sum().backward()
            expected -= module[0].weight.detach() * (2 * module[0].weight.detach() @ x.T @ x)
    assert torch.allclose(zeroing.scores["0"], expected, rtol=1e-4, atol=1e-4)


def test_zeros_do_not_count_when_gradients_are_clipped():
    module = nn.Sequential(nn.Linear(4, 4, bias=False))
    zeroing = Zeroing(sparse_weights(module, WIDE), WIDE)
    zeroing.masks["0"][:, :2] = False
    zeroing.apply()
    with zeroing:
        module(torch.ones(1, 4)).sum().backward()
    assert (module[0].weight.grad[:, :2] == 0).all()
    assert (module[0].weight.grad[:, 2:] == 1).all()


@pytest.mark.parametrize("saliency", ["magnitude", "gradient"])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, saliency):
    config = SparseConfig(sparsity=0.7, every=3, least=0, saliency=saliency)
    training = TrainConfig(steps=20, lr=0.02, precision="fp32", checkpoint_every=4)
    whole = sparse_train(net(), loss, loader(), config, training)

    calls = []

    def dying(module, batch):
        calls.append(1)
        if len(calls) == 14:
            raise MemoryError
        return loss(module, batch)

    with pytest.raises(MemoryError):
        sparse_train(net(), dying, loader(), config, training, resume=tmp_path)
    assert os.listdir(tmp_path)
    resumed = sparse_train(net(), loss, loader(), config, training, resume=tmp_path)
    assert bits(resumed.module) == bits(whole.module)


def test_the_best_weights_are_looked_for_only_once_the_zeros_are_fixed():
    shares = []

    def validate(module):
        shares.append(sparsity_of(module)[0].share)
        return -len(shares)

    made = sparse_train(net(), loss, loader(), SparseConfig(sparsity=0.5, least=0), TrainConfig(epochs=4, precision="fp32"), validate=validate)
    assert shares
    assert all(share == 0.5 for share in shares)
    assert sparsity_of(made)[0].share == 0.5


def test_a_run_that_stops_early_has_its_zeros_all_the_same():
    made = sparse_train(net(), loss, loader(), SparseConfig(sparsity=0.5, least=0), TrainConfig(steps=50, precision="fp32", spend=1e-6))
    assert sparsity_of(made)[0].share == 0.5


def test_a_run_that_stops_with_its_first_epoch_is_scored_with_its_zeros():
    """The epoch's end, where the zeros are not fixed, and the run's end, where they are, are one step."""
    scored, kept = [], []

    def validate(module):
        scored.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        return 0.5

    training = TrainConfig(steps=50, lr=0.02, precision="fp32", spend=1e-6)
    one_step = [next(iter(loader()))]
    made = sparse_train(net(), loss, one_step, SparseConfig(sparsity=0.5, least=0), training, validate=validate, done=lambda *both: kept.extend(both))
    assert (kept[0].stopped, kept[0].steps) == ("spend reached", 1)
    assert kept[1].score == 0.5
    assert kept[1].scores == [{"step": 1, "score": 0.5}]
    assert sparsity_of(made)[0].share == 0.5
    assert all(torch.equal(tensor, scored[-1][name]) for name, tensor in made.module.state_dict().items()), "what was scored is what is returned"


@pytest.mark.parametrize(("model", "config"), [(0, SparseConfig(sparsity=0.7, least=0)), (1, SparseConfig(sparsity=0.5, least=0))])
def test_another_runs_checkpoint_is_not_gone_on_from(tmp_path, model, config):
    training = TrainConfig(steps=4, precision="fp32")
    sparse_train(net(), loss, loader(), SparseConfig(sparsity=0.5, least=0), training, resume=tmp_path)
    with pytest.raises(BadConfig, match="the checkpoint belongs to another run"):
        sparse_train(net(model), loss, loader(), config, training, resume=tmp_path)


def test_what_is_left_dense_is_named():
    module = cnn()
    rows = {row.name: row.left for row in sparsity_of(module, SparseConfig(pattern="2:4", least=0))}
    assert rows["stem.0"] == "its 1 inputs are no multiple of 4"
    assert rows["blocks.0.conv1"] == ""
    tied = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8, bias=False))
    tied[1].weight = tied[0].weight
    assert sparsity_of(tied, WIDE)[0].left == "its weight is shared with 0"
    assert sparsity_of(net(), SparseConfig())[0].left == "it has fewer than 1,024 weights"
    assert sparsity_of(net(), SparseConfig(pattern="5x1", least=0))[0].left == "its 32 x 8 weights do not divide into blocks of 5 x 1"


def test_nothing_to_thin_out_is_an_error():
    with pytest.raises(BadModel, match=r'no layer can take the pattern "unstructured"(.|\n)*fewer than 1,024'):
        sparse_train(net(), loss, loader(), SparseConfig(), TrainConfig(steps=2))


def test_nan_in_the_loss_returns_nothing():
    with pytest.raises(Diverged, match="the loss became nan"):
        sparse_train(net(), lambda module, batch: loss(module, batch) * float("nan"), loader(), WIDE, TrainConfig(steps=2, precision="fp32"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pattern": "4:2"}, "needs 0 < N < M"),
        ({"pattern": "banana"}, 'write "unstructured", "2:4" or "16x1"'),
        ({"pattern": "1x1"}, "is no block"),
        ({"begin": 0.8, "end": 0.5}, "must come before end"),
        ({"pattern": "2:4", "scope": "global"}, "means nothing with it"),
        ({"sparsity": 1.0}, "less than 1"),
    ],
)
def test_configs_that_make_no_sense(values, message):
    with pytest.raises(ValidationError, match=message):
        SparseConfig(**values)


def test_engines_and_zeros():
    assert not any(word.faster for word in speaks("unstructured"))
    assert [word.engine for word in speaks("2:4", isa=("AMX-INT8",)) if word.faster] == ["openvino"]
    assert "CUDA" in speaks("2:4", ["torch"])[0].why
    assert "lissome prune" in speaks("32x32", ["onnxruntime"])[0].why
    with pytest.raises(ValueError, match="there is no engine called"):
        speaks("2:4", ["banana"])


def test_on_a_task_it_is_cached_and_loads_again(tmp_path):
    task, model = number_task(), as_model(small())
    config = SparseTaskConfig(sparse=SparseConfig(sparsity=0.5, least=0), train=TrainConfig(epochs=2, lr=0.02, precision="fp32"), size=8)
    cache = Cache(tmp_path)
    made = sparsify_for_task(model, task, config, cache)
    again = sparsify_for_task(model, task, config, cache)
    assert made.fingerprint == again.fingerprint != model.fingerprint
    assert sparsity_of(made)[0].share == 0.5
    assert not (tmp_path / "training").exists() or not any((tmp_path / "training").iterdir())


def test_a_factory_model_is_written_as_a_folder(tmp_path):
    from lissome.data import load_task

    task = load_task("lissome.data.digits:digits_task")
    model = load_model("lissome.nn.cnn:small_cnn")
    config = SparseTaskConfig(sparse=SparseConfig(pattern="2:4"), train=TrainConfig(steps=4, precision="fp32"), size=16)
    made = sparsify_for_task(model, task, config, Cache(tmp_path))
    read = load_model(made.ref)
    assert {row.share for row in sparsity_of(read, config.sparse) if not row.left} == {0.5}


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    arguments = ["sparse-train", "lissome.nn.cnn:small_cnn", "--task", "lissome.data.digits:digits_task", "--out", str(tmp_path / "sparse")]
    assert command([*arguments, "--epochs", "1", "--batch", "256", "--pattern", "2:4"]) == 0
    shown = capsys.readouterr().out
    assert "| blocks.0.conv1" in shown
    assert "50.0 %" in shown
    assert "it has fewer than 1,024 weights" in shown
    assert "no faster  onnxruntime" in shown
    assert command([*arguments, "--pattern", "banana"]) == 2
    assert capsys.readouterr().err == '--pattern: "banana" is not a pattern; write "unstructured", "2:4" or "16x1"\n'
