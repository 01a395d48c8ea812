from __future__ import annotations

import pytest

from lissome.core.measurement import Measurement
from lissome.machine.layers import Layers, LayerTiming
from lissome.machine.levers import Lever, levers, pays, times
from lissome.machine.peaks import Gain, Peak, Peaks


def figure(value: float, unit: str, low: float | None = None, high: float | None = None) -> Measurement:
    return Measurement("f", value, low or value * 0.99, high or value * 1.01, unit, 9, "measured", "here")


def peaks(bf16: float = 2.4, int8: float = 2.0, threads: float | None = 1.9) -> Peaks:
    entries = [
        Peak(kind="fp32", threads=2, timed="torch.matmul, 1024 x 1024 x 1024", figure=figure(210, "GFLOP/s")),
        Peak(kind="bf16", threads=2, timed="torch.matmul, 1024 x 1024 x 1024", figure=figure(210 * bf16, "GFLOP/s")),
        Peak(kind="int8", threads=2, timed="torch._int_mm, row-major", figure=figure(210 * int8, "GOP/s")),
    ]
    gains = [Gain(faster="bf16", slower="fp32", ratio=figure(bf16, "x")), Gain(faster="int8", slower="fp32", ratio=figure(int8, "x"))]
    if threads:
        gains += [
            Gain(faster="fp32 all threads", slower="fp32 one thread", ratio=figure(threads, "x")),
            Gain(faster="copy all threads", slower="copy one thread", ratio=figure(1.2, "x")),
        ]
    return Peaks(entries=tuple(entries), gains=tuple(gains))


def layer(engine: str, precision: str, ms: float, over_torch: float | None = None, over_fp32: float | None = None, shape: str = "one text") -> LayerTiming:
    return LayerTiming(
        engine=engine,
        precision=precision,
        shape=shape,
        time=figure(ms, "ms"),
        over_torch=figure(over_torch, "x") if over_torch else None,
        over_fp32=figure(over_fp32, "x") if over_fp32 else None,
    )


def named(found: tuple[Lever, ...], name: str) -> Lever:
    return next(lever for lever in found if lever.name == name)


def test_what_pays_is_said_with_both_figures():
    lever = named(levers(peaks()), "bf16")
    assert lever.sentence == "bf16 is about 2.4x here on large matrix products (measured 210 GFLOP/s -> 504 GFLOP/s; torch.matmul, 1024 x 1024 x 1024)."
    assert lever.pays == "yes"
    assert lever.gains[0].value == 2.4


def test_int8_that_does_not_pay_advises_to_prune():
    lever = named(levers(peaks(int8=0.9)), "int8")
    assert lever.sentence.startswith("INT8 would be 0.90x here")
    assert lever.sentence.endswith("prune or distil instead.")
    assert lever.pays == "no"


def test_an_unclear_gain_is_said_to_be_unclear():
    unclear = Gain(faster="bf16", slower="fp32", ratio=figure(1.2, "x", 0.8, 1.6))
    found = peaks()
    lever = named(levers(found.model_copy(update={"gains": (unclear,)})), "bf16")
    assert lever.pays == "unclear"
    assert "no clear gain" in lever.sentence
    assert "1.2x [0.80, 1.6]" in lever.sentence


def test_threads():
    assert named(levers(peaks()), "threads").sentence == "2 threads give 1.9x of one on matrix products and 1.2x on copies."
    slow = named(levers(peaks(threads=0.7)), "threads")
    assert slow.pays == "no"
    assert "Run on one, or set OMP_WAIT_POLICY=PASSIVE" in slow.sentence
    assert named(levers(peaks(threads=None)), "threads").sentence.startswith("One core is usable")


def test_a_peak_that_was_not_measured_says_why():
    found = peaks()
    missing = Peak(kind="int8", threads=2, timed="not available", why="nothing here computes it")
    lever = named(levers(found.model_copy(update={"entries": (*found.entries[:2], missing)})), "int8")
    assert lever.sentence == "INT8 matrix products: not measured, nothing here computes it."
    assert lever.pays == "unclear"


def test_engines_against_torch_and_precisions_against_their_own_fp32():
    layers = Layers(
        what="w",
        timings=(
            layer("torch", "fp32", 10),
            layer("onnxruntime", "fp32", 8, 1.25),
            layer("openvino", "fp32", 5, 2.0),
            layer("openvino", "int8-static", 2, 5.0, 2.5),
            layer("openvino", "bf16", 5.5, 1.8, 0.9),
        ),
    )
    found = levers(peaks(), layers)
    assert "torch fp32" not in [lever.name for lever in found]
    assert named(found, "openvino fp32").sentence == "OpenVINO fp32 against torch fp32, linear layers: 2.0x for one text (10 -> 5.0 ms)."
    assert named(found, "openvino int8-static").sentence == "OpenVINO INT8 (static) against its own fp32, linear layers: 2.5x for one text (5.0 -> 2.0 ms)."
    bf16 = named(found, "openvino bf16")
    assert bf16.pays == "no"
    assert bf16.sentence.endswith("It does not pay.")
    assert named(found, "quickest").sentence == "Quickest here on linear layers: OpenVINO INT8 (static) for one text (5.0x torch fp32)."


def test_only_torch_leaves_nothing_to_compare():
    assert [lever.name for lever in levers(peaks(), Layers(what="w", timings=(layer("torch", "fp32", 10),)))] == ["bf16", "int8", "threads"]


@pytest.mark.parametrize(("low", "high", "answer"), [(1.2, 1.4, "yes"), (0.8, 1.05, "no"), (0.9, 1.5, "unclear"), (1.1, 1.3, "unclear")])
def test_pays(low, high, answer):
    assert pays(figure((low + high) / 2, "x", low, high)) == answer


def test_times_shows_the_interval_only_where_it_is_wide():
    assert times(figure(2.4, "x")) == "2.4x"
    assert times(figure(2.4, "x", 1.8, 3.1)) == "2.4x [1.8, 3.1]"
    assert times(figure(12.3, "x")) == "12x"
