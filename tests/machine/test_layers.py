from __future__ import annotations

import pytest
import torch

from lissome.core.errors import EnvironmentLacks, MissingExtra
from lissome.machine import layers as layers_module
from lissome.machine.layers import Layers, measure_layers
from lissome.machine.stacks import torch_runner


def absent(stack, precision, threads):
    raise MissingExtra("openvino", "openvino", "timing OpenVINO")


def lacking(stack, precision, threads):
    raise EnvironmentLacks("this CPU has no bf16 instructions that OpenVINO uses")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(layers_module, "_WIDTHS", (16, 32))
    monkeypatch.setattr(layers_module, "_SHAPES", ((4, "few rows"), (8, "more rows")))


def test_each_precision_is_compared_with_torch_and_with_its_own_engine(small, monkeypatch):
    monkeypatch.setattr(layers_module, "RUNNERS", {("torch", "fp32"): torch_runner, ("torch", "bf16"): torch_runner, ("other", "fp32"): _as_torch})
    before = torch.get_num_threads()
    found = measure_layers("here", 1, gflops=50.0, seconds=0.05)
    assert torch.get_num_threads() == before
    assert [t.shape for t in found.of("torch", "bf16")] == ["few rows", "more rows"]
    for timing in found.timings:
        assert timing.time.unit == "ms"
        assert timing.time.low <= timing.time.value <= timing.time.high
        assert (timing.over_torch is None) == ((timing.engine, timing.precision) == ("torch", "fp32"))
        assert (timing.over_fp32 is None) == (timing.precision == "fp32")
    assert Layers.model_validate_json(found.model_dump_json()) == found


def _as_torch(stack, precision, threads):
    return torch_runner(stack, precision, threads)


def test_what_cannot_run_is_named_with_the_way_out(small, monkeypatch):
    monkeypatch.setattr(layers_module, "RUNNERS", {("torch", "fp32"): torch_runner, ("openvino", "fp32"): absent, ("openvino", "bf16"): lacking})
    found = measure_layers("here", 1, gflops=50.0, seconds=0.05)
    assert found.skipped == {
        "openvino fp32": 'openvino is not installed: pip install "lissome[openvino]"',
        "openvino bf16": "this CPU has no bf16 instructions that OpenVINO uses",
    }
    assert not found.of("openvino", "fp32")


@pytest.mark.parametrize(("rows", "gflops", "blocks"), [(32, 50.0, 6), (1024, 50.0, 1), (1024, 1e5, 6), (1024, 0.1, 1), (1024, 150.0, 3)])
def test_slow_machines_get_fewer_blocks(rows, gflops, blocks):
    assert layers_module._blocks(rows, gflops) == blocks
