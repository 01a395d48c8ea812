"""One plain sentence per lever, from what was measured here: what bf16, INT8, threads and each engine give, and when they do not pay."""

from __future__ import annotations

from typing import Literal

from lissome.core.config import Config
from lissome.core.measurement import Measurement
from lissome.machine.layers import Layers, LayerTiming
from lissome.machine.peaks import Peak, Peaks

Pays = Literal["yes", "no", "unclear"]
ENGINE_NAMES = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
PRECISION_NAMES = {"fp32": "fp32", "bf16": "bf16", "int8-dynamic": "INT8 (dynamic)", "int8-static": "INT8 (static)"}
# A gain whose interval does not reach past this is not worth a change of the model.
_WORTH = 1.1


class Lever(Config):
    """One lever. name: "bf16", "int8", "threads", "openvino int8-static". gains: the ratios behind the sentence, unit "x"."""

    name: str
    sentence: str
    pays: Pays
    gains: tuple[Measurement, ...] = ()


def levers(peaks: Peaks, layers: Layers | None = None) -> tuple[Lever, ...]:
    """A sentence for each lever that was measured: peaks first, then each engine's own precisions."""
    found = [_precision_lever(peaks, "bf16", "bf16"), _precision_lever(peaks, "int8", "INT8"), _threads_lever(peaks)]
    if layers is not None:
        pairs = dict.fromkeys((t.engine, t.precision) for t in layers.timings)
        found += [_layer_lever(layers, engine, precision) for engine, precision in pairs if (engine, precision) != ("torch", "fp32")]
        found.append(_quickest(layers))
    return tuple(lever for lever in found if lever is not None)


def pays(gain: Measurement) -> Pays:
    """ "yes" where the whole interval lies above 1.1x, "no" where it lies below 1.1x, "unclear" where it does neither."""
    if gain.low > _WORTH:
        return "yes"
    return "no" if gain.high < _WORTH else "unclear"


def times(gain: Measurement) -> str:
    """ "2.4x", with the interval where it is wide: "2.4x [1.8, 3.1]"."""
    wide = gain.high - gain.low > 0.2 * gain.value
    return f"{_short(gain.value)}x" + (f" [{_short(gain.low)}, {_short(gain.high)}]" if wide else "")


def _precision_lever(peaks: Peaks, kind: Literal["bf16", "int8"], name: str) -> Lever | None:
    """What a precision gives on large matrix products."""
    fast, slow, gain = peaks.get(kind), peaks.get("fp32"), peaks.gain(kind, "fp32")
    if fast is not None and fast.figure is None:
        return Lever(name=kind, sentence=f"{name} matrix products: not measured, {fast.why}.", pays="unclear")
    if fast is None or slow is None or gain is None or fast.figure is None or slow.figure is None:
        return None
    instead = "prune or distil" if kind == "int8" else "stay with fp32 or try INT8"
    basis = f"(measured {_figure(slow)} -> {_figure(fast)}; {fast.timed})"
    answer = pays(gain)
    text = {
        "yes": f"{name} is about {times(gain)} here on large matrix products {basis}.",
        "no": f"{name} would be {times(gain)} here on large matrix products {basis}: {instead} instead.",
        "unclear": f"{name} gives no clear gain here on large matrix products: {times(gain)} {basis}.",
    }
    return Lever(name=kind, sentence=text[answer], pays=answer, gains=(gain,))


def _threads_lever(peaks: Peaks) -> Lever | None:
    """What all threads give over one."""
    products, copies = peaks.gain("fp32 all threads", "fp32 one thread"), peaks.gain("copy all threads", "copy one thread")
    most = peaks.get("fp32")
    if most is None:
        return None
    if products is None:
        return Lever(name="threads", sentence="One core is usable: there is nothing to gain from threads.", pays="no")
    # On 2 cores with one busy neighbour a stack of 12 layers took 240 ms on two spinning threads, 8.4 ms on two that sleep, 7.3 ms on one.
    advice = " Run on one, or set OMP_WAIT_POLICY=PASSIVE so that threads sleep while they wait." if pays(products) == "no" else ""
    copying = f" and {times(copies)} on copies" if copies else ""
    gains = tuple(gain for gain in (products, copies) if gain)
    return Lever(
        name="threads", sentence=f"{most.threads} threads give {times(products)} of one on matrix products{copying}.{advice}", pays=pays(products), gains=gains
    )


def _layer_lever(layers: Layers, engine: str, precision: str) -> Lever:
    """What an engine gives over torch (fp32), or a precision over the same engine's fp32, on layers of a real model's shape."""
    timings = layers.of(engine, precision)
    against = "torch fp32" if precision == "fp32" else "its own fp32"
    gains = {t.shape: gain for t in timings if (gain := t.over_torch if precision == "fp32" else t.over_fp32) is not None}
    answers = {pays(gain) for gain in gains.values()}
    answer: Pays = "yes" if "yes" in answers else "no" if answers == {"no"} else "unclear"
    parts = [f"{times(gains[t.shape])} for {t.shape} ({_short(_before(layers, t))} -> {_short(t.time.value)} ms)" for t in timings if t.shape in gains]
    tail = {"yes": "", "no": " It does not pay.", "unclear": " No clear gain."}[answer]
    return Lever(
        name=f"{engine} {precision}",
        sentence=f"{_runtime(engine, precision)} against {against}, linear layers: {' and '.join(parts)}.{tail}",
        pays=answer,
        gains=tuple(gains.values()),
    )


def _quickest(layers: Layers) -> Lever | None:
    """Which engine and precision was quickest at each shape, by its median."""
    shapes = dict.fromkeys(t.shape for t in layers.timings)
    best = [min((t for t in layers.timings if t.shape == shape), key=lambda t: t.time.value) for shape in shapes]
    gains = tuple(t.over_torch for t in best if t.over_torch is not None)
    if not gains:
        return None
    parts = [f"{_runtime(t.engine, t.precision)} for {t.shape}" + (f" ({times(t.over_torch)} torch fp32)" if t.over_torch else "") for t in best]
    answers = {pays(gain) for gain in gains}
    return Lever(name="quickest", sentence=f"Quickest here on linear layers: {', '.join(parts)}.", pays="yes" if "yes" in answers else "unclear", gains=gains)


def _runtime(engine: str, precision: str) -> str:
    return f"{ENGINE_NAMES.get(engine, engine)} {PRECISION_NAMES.get(precision, precision)}"


def _before(layers: Layers, timing: LayerTiming) -> float:
    """ms of what a timing is compared with."""
    engine = "torch" if timing.precision == "fp32" else timing.engine
    return next((t.time.value for t in layers.of(engine, "fp32") if t.shape == timing.shape), float("nan"))


def _figure(peak: Peak) -> str:
    return f"{peak.figure.value:.0f} {peak.figure.unit}" if peak.figure else "?"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
