from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.contract import Contract
from lissome.core.manifest import Manifest
from lissome.core.measurement import Measurement
from lissome.report.front import Scale, draw, pictures
from lissome.report.labels import Box
from tests.report import manifests

SIZES = [(760, 460, False), (348, 380, True)]
OUTCOMES = ["dominated", "over limit", "chosen"]


@st.composite
def runs(draw_: st.DrawFn) -> Manifest:
    """Manifests with any plausible cloud of options."""
    numbers = draw_(
        st.lists(st.tuples(st.floats(0.01, 2000), st.floats(1, 5000), st.floats(0.1, 900), st.floats(-3, 60), st.floats(0, 5)), min_size=1, max_size=18)
    )
    names = itertools.product(["torch", "openvino", "onnxruntime"], ["bf16", "int8-static", "int8-dynamic"], ["longest", "fixed"])
    rows = [
        manifests.tried(engine, precision, draw_(st.sampled_from(OUTCOMES)), "why", (p50, p50 * 1.2, memory, size), (drop, half), padding, draw_(st.booleans()))
        for (p50, memory, size, drop, half), (engine, precision, padding) in zip(numbers, names, strict=False)
    ]
    limit = draw_(st.sampled_from(["2x", "5ms", "p95 100ms", "0.5x"]))
    base = manifests.met()
    return base.model_copy(
        update={"tried": (base.tried[0], *rows), "contract": Contract(max_drop=draw_(st.sampled_from(["0pt", "1pt", "30%"])), latency=limit)}
    )


@given(manifest=runs(), size=st.sampled_from(SIZES))
@settings(max_examples=60, deadline=None)
def test_labels_cover_neither_each_other_nor_a_marker(manifest: Manifest, size: tuple[int, int, bool]) -> None:
    for picture in pictures(manifest, *size):
        frame = Box(picture.left, picture.top, picture.right, picture.bottom)
        labelled = [mark for mark in picture.marks if mark.label]
        for mark in labelled:
            assert mark.label is not None
            assert mark.label.box.inside(frame)
            assert not any(mark.label.box.meets(other.box) for other in picture.marks if other is not mark)
        for a, b in itertools.combinations(labelled, 2):
            assert a.label is not None
            assert b.label is not None
            assert not a.label.box.meets(b.label.box)


@given(manifest=runs(), size=st.sampled_from(SIZES))
@settings(max_examples=60, deadline=None)
def test_everything_drawn_lies_within_the_picture(manifest: Manifest, size: tuple[int, int, bool]) -> None:
    for picture in pictures(manifest, *size):
        for mark in picture.marks:
            assert picture.left <= mark.x <= picture.right
            assert 0 < mark.y <= picture.bottom
            for low, high in filter(None, (mark.across, mark.upright)):
                assert math.isfinite(low)
                assert math.isfinite(high)
        xs = [tick.at for tick in picture.x_ticks]
        assert xs == sorted(xs)
        for limit in filter(None, (picture.limit_x,)):
            assert picture.left <= limit.at <= picture.right


@given(low=st.floats(1e-3, 1e3), span=st.floats(1.5, 1e4), log=st.booleans(), share=st.floats(0, 1))
def test_a_scale_keeps_order_and_its_ticks_lie_within(low: float, span: float, log: bool, share: float) -> None:
    scale = Scale(low, low * span, 10, 500, log)
    value = low + share * (low * span - low)
    assert 10 <= scale(value) <= 500
    assert scale(low) == 10
    assert scale(value) <= scale(low * span) + 1e-6
    ticks = scale.ticks(6)
    assert all(low * (1 - 1e-6) <= tick <= low * span * (1 + 1e-6) for tick in ticks)
    assert ticks == sorted(ticks)


def test_the_chosen_option_and_the_original_are_always_named_in_a_real_run() -> None:
    for make in manifests.ALL.values():
        for size in SIZES:
            for picture in pictures(make(), *size):
                named = {mark.group for mark in picture.marks if mark.label}
                assert {mark.group for mark in picture.marks} & {"chosen", "original"} <= named, (make.__name__, picture.axis, size)


def test_the_region_within_the_limits_holds_the_options_that_are() -> None:
    picture = draw(manifests.met(), "latency_p50", 760, 460)
    assert picture is not None
    assert picture.feasible is not None
    x, y, width, height = picture.feasible
    inside = {mark.index for mark in picture.marks if x <= mark.x <= x + width and y <= mark.y <= y + height}
    rows = manifests.ENCODER
    expected = {
        i
        for i, row in enumerate(rows)
        if (p50 := row.figure("latency_p50")) and p50.value <= 7.47 / 2 and (row.outcome == "original" or (row.drop and row.drop.value <= 1))
    }
    assert inside == expected


def test_an_option_far_below_is_pinned_to_the_edge_and_does_not_squash_the_rest() -> None:
    picture = draw(manifests.digits(), "latency_p50", 760, 460)
    assert picture is not None
    pinned = [mark for mark in picture.marks if mark.pinned]
    assert [manifests.digits().tried[mark.index].why for mark in pinned] == ["Accuracy drop 41 pt."]
    assert pinned[0].label is not None
    assert "41.2 pt" in pinned[0].label.lines[0]
    assert pinned[0].y < picture.bottom


def test_the_axis_is_logarithmic_only_where_values_span_much() -> None:
    logs = {picture.axis: picture.log for picture in pictures(manifests.met(), 760, 460)}
    assert logs["latency_p50"]
    assert not logs["size"]


def test_options_without_figures_are_counted_not_drawn() -> None:
    picture = draw(manifests.met(), "latency_p50", 760, 460)
    assert picture is not None
    assert picture.missing == 2
    assert len(picture.marks) + picture.missing == len(manifests.ENCODER)


def test_nothing_to_draw_gives_no_picture() -> None:
    base = manifests.met()
    assert pictures(base.model_copy(update={"tried": manifests.ENCODER[-2:]}), 760, 460) == []


def test_a_zero_size_or_unknown_bound_still_draws() -> None:
    base = manifests.met()
    only = base.model_copy(update={"tried": base.tried[:1], "contract": Contract(memory="2x")})
    assert len(pictures(only, 760, 460)) == 4


def test_the_stairs_run_through_the_best_points_only() -> None:
    picture = draw(manifests.met(), "latency_p50", 760, 460)
    assert picture is not None
    chosen = next(mark for mark in picture.marks if mark.group == "chosen")
    assert picture.stairs.startswith(f"M{chosen.x},{picture.bottom}V{chosen.y}")


@pytest.mark.parametrize("limit", ["1%rel", "0.2pt"])
def test_the_drop_limit_is_drawn_within_the_picture(limit: str) -> None:
    manifest = manifests.met().model_copy(update={"contract": Contract(max_drop=limit)})
    picture = draw(manifest, "memory", 760, 460)
    assert picture is not None
    assert picture.limit_y is not None
    assert picture.top < picture.limit_y.at < picture.bottom
    assert picture.limit_x is None


def test_a_very_long_interval_runs_off_the_axis_instead_of_setting_it() -> None:
    base = manifests.met()
    row = base.tried[6]
    noisy = row.model_copy(update={"figures": (Measurement("latency_p50", 2.9, 2.5, 900.0, "ms", 9, "measured", manifests.FINGERPRINT), *row.figures[1:])})
    picture = draw(base.model_copy(update={"tried": (*base.tried[:6], noisy, *base.tried[7:])}), "latency_p50", 760, 460)
    assert picture is not None
    assert float(picture.x_ticks[-1].text) <= 10
    mark = next(mark for mark in picture.marks if mark.index == 6)
    assert mark.across is not None
    assert mark.across[1] == picture.right
