from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from lissome.core.cache import Entry
from lissome.data.check import Lengths, Overlap, TaskReport
from lissome.machine.energy import EnergyState
from lissome.machine.layers import Layers, LayerTiming
from lissome.machine.levers import Lever
from lissome.machine.noise import Noise
from lissome.machine.peaks import Peak, Peaks
from lissome.machine.probe import Compiler, Probe
from lissome.optimize.measuring import Measured, MeasuredModel
from lissome.optimize.recheck import Rechecked
from lissome.report.terminal import (
    before_after_table,
    cache_table,
    measured_tables,
    measurements_table,
    options_table,
    prediction_lines,
    probe_table,
    recheck_text,
    task_report_table,
    verdict_text,
)
from tests.report import manifests


def shown(renderable: object, width: int = 80) -> str:
    """What a pipe receives."""
    out = io.StringIO()
    Console(file=out, width=width).print(renderable)
    return out.getvalue()


@pytest.mark.parametrize("name", sorted(manifests.ALL))
@pytest.mark.parametrize("table", [before_after_table, options_table])
def test_tables_fit_80_columns_without_colour_or_boxes(name: str, table: Callable[..., object]) -> None:
    text = shown(table(manifests.ALL[name]()))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "\x1b" not in text
    assert not any(0x2500 <= ord(c) < 0x2600 for c in text)


def test_the_verdict_is_aligned_and_wrapped() -> None:
    lines = verdict_text(manifests.met()).splitlines()
    assert lines[0].startswith("MET     accuracy drop <= 1 pt (95 %): measured 0.31, upper bound 0.78")
    assert lines[1] == "        test examples, seen once"
    assert "Plan    openvino int8-static, padded to 16; 14 options tried in 3 min 7 s" in lines
    assert lines[-1] == "Replay  " + manifests.met().replay
    assert all(len(line) <= 80 for line in lines if not line.startswith("Replay"))


def test_a_missed_limit_and_one_that_cannot_be_certified_are_told_apart() -> None:
    text = verdict_text(manifests.not_met())
    assert "UNCERTAIN  accuracy drop" in text
    assert "NOT MET    latency p95" in text
    assert "MET        memory" in text


def test_an_infeasible_contract_names_the_limit_and_hands_over_a_command() -> None:
    manifest = manifests.infeasible()
    text = verdict_text(manifest)
    assert "INFEASIBLE  No option reaches 0.5 ms." in text
    assert f"Try         {manifest.verdict.nearest}" in text.splitlines()


def test_a_sentence_that_does_not_name_its_limit_is_led_by_it() -> None:
    base = manifests.met()
    bare = base.verdict.clauses[2].model_copy(update={"sentence": "96 MB, was 402"})
    text = verdict_text(base.model_copy(update={"verdict": base.verdict.model_copy(update={"clauses": (bare,)})}))
    assert text.startswith("MET     memory <= 200 MB: 96 MB, was 402")


def test_before_and_after_shows_intervals_and_ratios() -> None:
    text = shown(before_after_table(manifests.met()))
    line = next(line for line in text.splitlines() if line.startswith("latency p50"))
    assert " ".join(line.split()) == "latency p50 7.47 ms [7.25, 7.69] 1.06 ms [1.03, 1.09] 7.0x faster"


def test_every_option_has_a_line_and_failures_are_told_in_full() -> None:
    text = shown(options_table(manifests.met()))
    for row in manifests.ENCODER:
        assert f"{row.option.engine} {row.option.precision}" in text
    joined = " ".join(text.split())
    assert "first diverging layer: encoder.layer.3.attention.output.dense." in joined
    assert 'pip install "lissome[executorch]" brings it.' in joined


def test_names_that_look_like_markup_stay_text() -> None:
    base = manifests.met()
    odd = manifests.tried("torch", "bf16", "failed", "[bold]not[/bold] [/nothing] markup")
    assert "[bold]not[/bold] [/nothing] markup" in shown(options_table(base.model_copy(update={"tried": (*base.tried, odd)})))


def test_measurements_are_listed_with_how_they_were_got() -> None:
    text = shown(measurements_table(manifests.ENCODER[0].figures))
    assert text.splitlines()[-1].split() == ["size", "on", "disk", "90.9", "MB", "1", "counted"]


def report(**changes: object) -> TaskReport:
    base: dict[str, object] = {
        "name": "sentiment",
        "kind": "text-classification",
        "ref": "task.yaml",
        "fingerprint": "ab",
        "classes": ("negative", "positive"),
        "sizes": {"train": 1200, "calibration": 100, "validation": 300, "test": 0},
        "balance": {"train": {"negative": 300, "positive": 900}},
        "lengths": Lengths(unit="tokens", median=19, p95=44, longest=512, limit=512, cut=0.012),
        "shape": None,
        "repeated": {"train": 3},
        "across": (Overlap(first="train", second="test", count=2, examples=('"a [good] film"',)),),
        "contradictory": 4,
        "certifiable_pt": 0.42,
        "notes": (),
        "warnings": ("the test split is empty",),
    }
    return TaskReport.model_validate({**base, **changes})


def test_a_task_report_shows_balance_leakage_and_warnings() -> None:
    text = " ".join(shown(task_report_table(report())).split())
    for expected in (
        "train 1,200 3 25.0 % 75.0 %",
        '2 examples of test are also in train, such as "a [good] film"',
        "1.2 % reach the limit of 512",
        "4 examples occur with more than one label",
        "no drop below 0.42 pt",
        "warning the test split is empty",
    ):
        assert expected in text
    assert "test 0 0 – –" in text


def test_a_task_with_many_classes_lists_them_once() -> None:
    text = shown(task_report_table(report(classes=tuple(f"class {i}" for i in range(100)), balance={}, warnings=())))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "100: class 0, class 1" in text
    assert "warnings  none" in text


def test_a_probe_shows_peaks_layers_and_a_sentence_per_lever() -> None:
    probe = Probe(
        machine=manifests.MACHINE,
        system="Linux 6.1 x86_64",
        python="3.11.2",
        cores="2 usable cores of 8: a CPU quota of 2 holds",
        peaks=Peaks(
            entries=(
                Peak(kind="fp32", threads=2, timed="torch.matmul, 1024 x 1024 x 1024", figure=manifests.measured("peak", 132, 4, "GFLOP/s")),
                Peak(kind="int8", threads=2, timed="", figure=None, why="no engine here multiplies int8 matrices"),
            )
        ),
        layers=Layers(
            what="feed-forward blocks 384 -> 1536 -> 384",
            timings=(
                LayerTiming(engine="torch", precision="fp32", shape="1 text", time=manifests.measured("time", 2.4, 0.1, "ms")),
                LayerTiming(
                    engine="openvino",
                    precision="bf16",
                    shape="1 text",
                    time=manifests.measured("time", 1.0, 0.1, "ms"),
                    over_torch=manifests.measured("ratio", 2.4, 0.1, "x"),
                ),
            ),
            skipped={"executorch": "not installed"},
        ),
        levers=(Lever(name="bf16", sentence="bf16 is about 2.4x here.", pays="yes"),),
        energy=EnergyState(counter="none", sentence="No energy counter can be read here."),
        engines={"torch": "2.13.0"},
        missing={"openvino": 'pip install "lissome[openvino]"'},
        compiler=Compiler(path=None, sentence="No C++ compiler."),
        noise=Noise(steal=0, others=0, spread=0, verdict="quiet", sentence="Quiet."),
        versions={},
        seconds=31.0,
    )
    text = shown(probe_table(probe))
    assert all(len(line) <= 80 for line in text.splitlines())
    joined = " ".join(text.split())
    for expected in (
        "2 usable cores of 8: a CPU quota of 2 holds",
        'missing openvino: pip install "lissome[openvino]"',
        "fp32 2 132 GFLOP/s [128, 136]",
        "int8 2 – no engine here multiplies int8 matrices",
        "openvino bf16 1 text 1.00 ms 2.40x",
        "left out executorch: not installed",
        "- bf16 is about 2.4x here.",
        "No C++ compiler.",
    ):
        assert expected in joined


def test_a_recheck_says_where_and_how_noisy() -> None:
    manifest = manifests.not_met()
    here = recheck_text(Rechecked(manifest, manifest.verdict, True, "Quiet."))
    assert here.splitlines()[0].startswith("UNCERTAIN  accuracy drop")
    assert "Machine    measured again on the machine it was made on" in here
    assert "Noise      Quiet." in here
    elsewhere = " ".join(recheck_text(Rechecked(manifest, manifest.verdict, False, "")).split())
    assert "on another machine than the one it was made on (Intel(R) Xeon(R) Platinum 8488C)" in elsewhere


def test_predictions_are_one_line_each() -> None:
    inputs = ["a film\nof two lines", "word " * 60]
    text = prediction_lines(inputs, [{"label": "positive", "probability": 0.98321}, {"label": "negative", "probability": 0.6}])
    first, second = text.splitlines()
    assert first == "positive  0.983  a film of two lines"
    assert second.startswith("negative  0.600  word word")
    assert len(second) <= 80
    assert prediction_lines(["1,2"], [{"output": [0.5]}]) == "[0.5]  1,2"
    assert prediction_lines([], []) == ""


def test_the_cache_is_listed_by_kind() -> None:
    root = Path("/tmp/cache")
    entries = [Entry("forms", "a", root, 80_000_000, 0.0), Entry("timings", "b", root, 2_000, 0.0), Entry("forms", "c", root, 10_000_000, 0.0)]
    text = shown(cache_table(root, entries))
    assert "holds   3 entries, 90.0 MB" in text
    assert [line.split() for line in text.splitlines()[-2:]] == [["forms", "2", "90.0"], ["timings", "1", "0.0"]]
    assert "holds   nothing" in shown(cache_table(root, []))


def test_what_was_measured_is_shown_model_by_model_with_the_noise() -> None:
    speedup = manifests.measured("speedup_latency_p50", 2.2, 0.1, "x")
    found = Measured(
        machine="m",
        rows=(
            MeasuredModel(model="runs/[a]", runs_as="torch fp32", batch=1, figures=manifests.ENCODER[0].figures),
            MeasuredModel(model="b", runs_as="openvino bf16", batch=1, figures=manifests.ENCODER[9].figures, speedups=(speedup,)),
        ),
        noise=("batch 1: Quiet.",),
    )
    out = io.StringIO()
    console = Console(file=out, width=80)
    for part in measured_tables(found):
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)
    text = out.getvalue()
    assert "runs/[a] (torch fp32), batch 1" in text
    assert ["speedup", "latency", "p50", "2.20", "x", "[2.10,", "2.30]", "40", "measured"] in [line.split() for line in text.splitlines()]
    assert "batch 1: Quiet." in text
