"""Every engine in every precision it has here, against torch in float32; mixed forms are held to their simulation in tests/export/test_qdq.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lissome.engines.table import ENGINES, MIXED, PRECISIONS, Load, engine, load
from lissome.export.parity import relative_error
from lissome.machine.identity import identify
from tests.export.recipes import MODELS

ISA = identify().isa
WAYS = [(name, precision) for name in ENGINES if name != "torch.compile" for precision in engine(name).support(ISA).precisions if precision != MIXED]
TOLERANCE = {"fp32": 1e-5, "bf16": 0.05, "int8-dynamic": 0.2, "int8-static": 0.25}
BATCHES, LENGTHS = (1, 2, 3, 8, 9, 17), (6, 16, 33)


def sizes(name):
    return list(itertools.product(BATCHES if name != "bert" else (1, 3, 8), LENGTHS if name == "bert" else (0,)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("engine_name", "precision"), WAYS)
def test_free_shapes(forms, name, engine_name, precision):
    session = load(engine_name, forms.form(name, engine_name, precision), Load(precision, 1))
    for batch_size, length in sizes(name):
        batch = forms[name].batch(batch_size, length, batch_size)
        found = session.run(batch)
        assert found.dtype == np.float32
        assert relative_error(forms[name].reference(batch), found) < TOLERANCE[precision], f"batch {batch_size}, length {length}"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("engine_name", "precision"), WAYS)
def test_fixed_shapes(forms, name, engine_name, precision):
    """`mlp_without_bias` at 8 rows or fewer is where OpenVINO 2026.4.1 gives int8 outputs 1e10 times too large."""
    form = forms.form(name, engine_name, precision)
    for batch_size, length in sizes(name):
        batch = forms[name].batch(batch_size, length, batch_size)
        session = load(engine_name, form, Load(precision, 1, {name: array.shape for name, array in batch.items()}))
        for seed in range(2):
            batch = forms[name].batch(batch_size, length, seed)
            assert relative_error(forms[name].reference(batch), session.run(batch)) < TOLERANCE[precision], f"batch {batch_size}, length {length}"


@pytest.mark.parametrize(("engine_name", "precision"), WAYS)
def test_outputs_are_the_callers_own(forms, engine_name, precision):
    """A second call must not change what the first gave, nor the inputs."""
    session = load(engine_name, forms.form("mlp", engine_name, precision), Load(precision, 1))
    first, second = forms["mlp"].batch(4, 0, 1), forms["mlp"].batch(4, 0, 2)
    given = first["features"].copy()
    found = session.run(first)
    kept = found.copy()
    session.run(second)
    assert np.array_equal(found, kept)
    assert np.array_equal(first["features"], given)
    assert np.array_equal(session.run(first), kept)


@pytest.mark.parametrize(("engine_name", "precision"), WAYS)
def test_inputs_the_model_does_not_take_are_left_out(forms, engine_name, precision):
    session = load(engine_name, forms.form("bert", engine_name, precision), Load(precision, 1))
    batch = forms["bert"].batch(2, 9, 0)
    more = {"token_type_ids": np.ones_like(batch["input_ids"]), **dict(reversed(batch.items()))}
    assert np.array_equal(session.run(more), session.run(batch))


@pytest.mark.parametrize(("engine_name", "precision"), WAYS)
def test_describe(forms, engine_name, precision):
    described = load(engine_name, forms.form("mlp", engine_name, precision), Load(precision, 1)).describe()
    assert described["engine"] == engine_name
    assert described["threads"] == "1"
    assert described["precision"] in (precision, "bfloat16" if precision == "bf16" else precision)
    assert described["version"] == engine(engine_name).support(ISA).version


def test_probes_see_layers_and_leave_outputs_alone(forms):
    batch = forms["cnn"].batch(2, 0, 0)
    for name in ("torch", "onnxruntime", "openvino"):
        form = forms.form("cnn", name, "fp32")
        plain, probed = load(name, form, Load("fp32", 1)), load(name, form, Load("fp32", 1, probes=True))
        assert relative_error(plain.run(batch), probed.run(batch)) < 1e-5
        assert probed.layers(batch)["head"].shape == (2, 4)
        assert plain.layers(batch) == {}


def test_a_layer_that_is_called_twice_stands_where_it_was_called_last(tmp_path, forms):
    import torch
    from torch import nn

    from lissome.engines.torch_eager import TorchSession

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.line = nn.ReLU(), nn.Linear(2, 2)

        def forward(self, x):
            return self.act(self.line(self.act(x)))

    session = TorchSession(Twice(), ("x",), Load("fp32", 1, probes=True))
    assert list(session.layers({"x": torch.ones(1, 2).numpy()})) == ["line", "act"]


def test_every_precision_has_a_place():
    for name in ENGINES:
        support = engine(name).support(ISA)
        assert (set(support.precisions) | set(support.missing)) - {MIXED} == set(PRECISIONS), "each is offered or has a reason"


@pytest.mark.slow
@pytest.mark.parametrize("precision", engine("torch.compile").support(ISA).precisions)
@pytest.mark.parametrize("name", ["bert", "cnn"])
def test_compiled(forms, name, precision):
    import torch

    torch._dynamo.reset()  # in one process the tests together would pass the limit of recompilations, and run uncompiled
    torch._dynamo.utils.counters.clear()
    batches = [forms[name].batch(size, length, size) for size, length in ((1, 16), (3, 7), (3, 21))]
    form = forms.form(name, "torch.compile", precision)
    free = load("torch.compile", form, Load(precision, 1))
    for batch in batches:
        assert relative_error(forms[name].reference(batch), free.run(batch)) < TOLERANCE[precision] * 10
    assert free.layers(batches[0]) == {}
    fixed = load("torch.compile", form, Load(precision, 1, {name: array.shape for name, array in batches[0].items()}))
    assert relative_error(forms[name].reference(batches[0]), fixed.run(batches[0])) < TOLERANCE[precision] * 10
    assert "compiler" in fixed.describe()
    assert 2 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4, "other lengths do not compile anew"


@pytest.mark.slow
def test_compiling_leaves_no_process_behind(forms, tmp_path):
    import psutil

    from lissome.engines.process import Process, write_batches

    batches = write_batches([forms["mlp"].batch(2, 0, 0)], tmp_path / "b.npz")
    with Process(1) as process:
        answer = process.load("torch.compile", forms.form("mlp", "torch.compile", "fp32"), "fp32", batches, None)
        assert answer["describe"]["engine"] == "torch.compile"
        children = psutil.Process(process.process.pid).children(recursive=True)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
