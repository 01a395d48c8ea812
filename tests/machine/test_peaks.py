from __future__ import annotations

import pytest
import torch

from lissome.machine import peaks as peaks_module
from lissome.machine.noise import NoiseMeter
from lissome.machine.peaks import Peaks, measure_peaks


@pytest.fixture
def small(monkeypatch):
    """Products and copies small enough for a test."""
    monkeypatch.setattr(peaks_module, "_SIZES", (32, 64))
    monkeypatch.setattr(peaks_module, "last_level_cache", lambda: 0)


def test_peaks_name_what_was_timed_and_carry_intervals(small):
    before = torch.get_num_threads()
    with NoiseMeter() as noise:
        found = measure_peaks("here", 2, seconds=0.2, noise=noise)
    assert torch.get_num_threads() == before
    assert {(e.kind, e.threads) for e in found.entries} == {(kind, threads) for kind in ("fp32", "bf16", "int8", "copy") for threads in (1, 2)}
    for entry in found.entries:
        assert entry.figure is not None, entry.why
        assert entry.figure.method == "measured"
        assert entry.figure.machine == "here"
        assert entry.figure.n >= 6
        assert 0 < entry.figure.low <= entry.figure.value <= entry.figure.high
        assert entry.figure.unit == {"int8": "GOP/s", "copy": "GB/s"}.get(entry.kind, "GFLOP/s")
    assert found.get("fp32").timed.startswith("torch.matmul, ")
    assert found.get("fp32").threads == 2
    assert found.get("fp32", 1).threads == 1
    assert {(g.faster, g.slower) for g in found.gains} == {
        ("bf16", "fp32"),
        ("int8", "fp32"),
        ("fp32 all threads", "fp32 one thread"),
        ("copy all threads", "copy one thread"),
    }
    assert len(noise.spreads) == 8
    assert Peaks.model_validate_json(found.model_dump_json()) == found


def test_one_core_has_no_ratio_of_threads(small):
    found = measure_peaks("here", 1, seconds=0.1)
    assert {e.threads for e in found.entries} == {1}
    assert found.gain("fp32 all threads", "fp32 one thread") is None


def test_without_any_int8_product_the_peak_is_not_available(small, monkeypatch):
    from lissome.core.errors import MissingExtra

    monkeypatch.delattr(torch, "_int_mm")

    def absent(stack, precision, threads):
        raise MissingExtra("onnxruntime", "onnx", "timing")

    monkeypatch.setattr(peaks_module, "RUNNERS", dict.fromkeys(peaks_module.RUNNERS, absent))
    found = measure_peaks("here", 1, seconds=0.1)
    assert found.get("int8").figure is None
    assert found.get("int8").timed == "not available"
    assert found.get("int8").why == "nothing here computes it"
    assert found.gain("int8", "fp32") is None


def test_a_product_that_torch_refuses_is_reported_with_its_reason(small, monkeypatch):
    def refuse(a, b):
        raise RuntimeError("self.size(0) needs to be greater than 16\nmore")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    monkeypatch.setattr(peaks_module, "RUNNERS", {("onnxruntime", "int8-dynamic"): _absent, ("openvino", "int8-static"): _absent})
    peak = measure_peaks("here", 1, seconds=0.1).get("int8")
    assert peak.figure is None
    assert "does not work here: self.size(0) needs to be greater than 16" in peak.why
    assert "\n" not in peak.why


def _absent(stack, precision, threads):
    from lissome.core.errors import MissingExtra

    raise MissingExtra("x", "x", "x")


def test_size_stops_growing_when_products_get_slow(monkeypatch):
    monkeypatch.setattr(peaks_module, "timed", lambda work: {256: 0.001, 512: 0.02, 1024: 0.2}[work()])
    assert peaks_module._fitting_size(lambda size: lambda: size, 2048) == 512
    assert peaks_module._fitting_size(lambda size: lambda: size, 256) == 256
