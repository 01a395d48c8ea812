"""What the planner's result is held against: the same cut everywhere, and NNCF's accuracy-aware quantisation."""

from __future__ import annotations

import json
import re
import statistics
import time
from pathlib import Path

import numpy as np

from lissome.compress.prune import PruneConfig, apply, choose
from lissome.core.errors import BadInput
from lissome.core.manifest import Option
from lissome.core.model import Model
from lissome.core.task import Split
from lissome.engines.measure import measure
from lissome.engines.process import EngineFailed
from lissome.export.forms import form_bytes
from lissome.export.onnx import quiet
from lissome.export.quantized import has_attention
from lissome.export.telemetry import silence_telemetry
from lissome.optimize import precision, shrink
from lissome.optimize.batches import scoring_batches
from lissome.optimize.bench import Bench, formed
from lissome.optimize.costs import variant_row
from lissome.optimize.run import Optimized
from lissome.optimize.sensitivity import probe_of
from lissome.optimize.structure import structure_of
from lissome.optimize.tables import Row, subject

HALVINGS, ROUNDS = 4, 15
"""Steps of the search for the share whose latency is the plan's, and rounds of each."""
SAME = 1.03
"""What counts as equal latency."""


def uniformly_pruned(bench: Bench, result: Optimized, plan: Row) -> tuple[str, Row] | None:
    """The model with the same share of every layer's heads, neurons or channels cut, run as the plan is, taught as long and rounded as carefully: the most
    accurate whose latency is the plan's, or the fastest that there is. None where the plan did not shrink the model."""
    lessons = re.search(r"distilled (\S+) epochs", result.manifest.plan.change or "")
    if lessons is None:
        return None
    structure = structure_of(bench.model, bench.recipe.example)
    scores = shrink.unit_scores(bench, structure)
    base = Option(engine=plan.option.engine, precision=plan.option.precision, padding=plan.option.padding)

    def at(ratio: float) -> Model:
        try:
            return apply(bench.model, structure.groups, choose(structure.groups, scores, PruneConfig(ratio=ratio)))
        except BadInput:  # so small a share that every width is rounded back to whole
            return bench.model

    def times(ratio: float) -> float:
        """Latency over the plan's, round by round in one interleaved run."""
        subjects = [subject(bench, row, final=True) for row in (plan, variant_row(bench, at(ratio), base))]
        ours, theirs = measure(subjects, bench.machine.fingerprint, rounds=ROUNDS, threads=bench.threads).results
        if ours.failed or theirs.failed:
            raise EngineFailed(ours.failed or theirs.failed or "")
        return statistics.median(b / a for a, b in zip(ours.rounds["latency_p50"], theirs.rounds["latency_p50"], strict=True))

    low, high = 0.0, 0.95
    fastest = times(high)
    found = high
    if fastest <= SAME:
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if times(middle) <= SAME else (middle, high)
        found = high
    taught = shrink.taught(bench, at(found), f"{found:.0%} cut everywhere", (), float(lessons[1]), ())
    if base.precision == "mixed":
        quantized = precision.best_scales(taught.bench, probe_of(bench))[0]
        if "trained in int8" in (result.manifest.plan.change or ""):
            quantized = precision.trained(taught.bench, quantized, bench.model)[0]
        taught = precision.varied(taught.bench, quantized, taught.change, (), ())
    form = formed(taught.bench, base)
    return f"uniform pruning, {found:.0%} cut everywhere, taught as long", Row(base, form, form_bytes(form), variant=taught)


def accuracy_controlled(bench: Bench, max_drop: float, into: Path) -> tuple[Row, float]:
    """NNCF's `quantize_with_accuracy_control` at the same limit: OpenVINO int8, layers put back in float until validation keeps `max_drop` (a fraction).

    The row, and the seconds it took.
    """
    silence_telemetry()
    import nncf
    import openvino as ov
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    source, task = formed(bench, ORIGINAL_ONNX), bench.task
    begun = time.perf_counter()

    def dataset(split: Split, size: int) -> tuple[nncf.Dataset, list[np.ndarray]]:
        ordered = scoring_batches(task, split, size)
        order, targets = list(ordered.order), []
        for batch in ordered.batches:
            rows = len(next(iter(batch.values())))
            targets.append(np.asarray(split.targets)[order[:rows]])
            order = order[rows:]
        return nncf.Dataset(list(zip(ordered.batches, targets, strict=True)), lambda one: {name: one[0][name] for name in bench.recipe.inputs}), targets

    def validate(model: ov.CompiledModel, data: object) -> tuple[float, list[float]]:
        """Mean score, and the score of each batch."""
        each = [task.score(model({name: batch[name] for name in bench.recipe.inputs})[0], targets) for batch, targets in data]  # type: ignore[attr-defined]
        return float(np.mean(np.concatenate(each))), [float(np.mean(one)) for one in each]

    calibration, _ = dataset(task.splits["calibration"], 8)
    validation, _ = dataset(task.splits["validation"], 32)
    with quiet():
        made = nncf.quantize_with_accuracy_control(
            ov.Core().read_model(str(source / "model.onnx")),
            calibration,
            validation,
            validate,
            max_drop=max_drop,
            model_type=nncf.ModelType.TRANSFORMER if has_attention(source) else None,
            advanced_quantization_parameters=AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.ENABLE if bench.recipe.reduce_range else OverflowFix.DISABLE
            ),
        )
    seconds = time.perf_counter() - begun
    into.mkdir(parents=True)
    ov.save_model(made, str(into / "model.xml"), compress_to_fp16=False)
    form = json.loads((source / "form.json").read_text(encoding="utf-8")) | {"engine": "openvino", "file": "model.xml"}
    (into / "form.json").write_text(json.dumps(form), encoding="utf-8")
    return Row(Option(engine="openvino", precision="int8-static"), into, form_bytes(into)), seconds


ORIGINAL_ONNX = Option(engine="onnxruntime", precision="fp32")
