"""Int8 and four-bit weights, by calibration and by training: MiniLM on sentiment, scored on the test split as it is deployed.

    python benchmarks/quantization.py [--json] [--write docs/benchmarks.md]

Every model is built as a graph of lissome's own for ONNX Runtime and judged there against torch fp32.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "rows": [{"name": str, "score": percent,
"drop_pt": figure, "size_mb": float, "smaller": float, "minutes": float}]} with figure = {"value", "low", "high", "unit", "n"}: one-sided bounds at 95 % each.
"""

from __future__ import annotations

import time
from typing import Any

from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QatTaskConfig, QuantizeConfig
from lissome.compress.quantize.task import calibration, qat_for_task
from lissome.core.cache import Cache
from lissome.core.contract import Contract
from lissome.core.manifest import Option
from lissome.core.progress import Progress
from lissome.core.quantization import Quantized
from lissome.core.statistics import certify_drop
from lissome.export.forms import form_bytes
from lissome.machine.identity import identify
from lissome.optimize.bench import formed, make_bench, outputs, vary
from lissome.optimize.demo import sentiment
from lissome.optimize.options import ORIGINAL
from lissome.report.markdown import markdown_table
from lissome.train.config import TrainConfig
from publishing import made_on, on, options, points, publish, spread

WAYS = {
    "int8 static": QuantizeConfig(method="mse"),
    "int8 dynamic": QuantizeConfig(precision="int8-dynamic"),
    "W4A16, groups of 32": QuantizeConfig(precision="w4a16", group=32),
    "W4A16, one scale a row": QuantizeConfig(precision="w4a16", group=None),
}
LESSON = QatTaskConfig(train=TrainConfig(epochs=1, lr=2e-5))
MIXED = Option(engine="onnxruntime", precision="mixed")


def run(progress: Progress) -> dict[str, Any]:
    """The whole benchmark as its JSON document."""
    cache, machine = Cache(), identify()
    model, task = sentiment(cache, progress)
    bench = make_bench(model, task, Contract(max_drop="1%", batch=32), machine, cache, progress)
    targets = task.splits["test"].targets
    original = formed(bench, ORIGINAL)
    before = task.score(outputs(bench, ORIGINAL, original, "test"), targets)
    whole = form_bytes(original)
    rows = [{"name": "torch fp32", "score": 100 * float(before.mean()), "drop_pt": None, "size_mb": whole / 1e6, "smaller": 1.0, "minutes": 0.0}]

    def judged(name: str, quantized: Quantized, seconds: float) -> None:
        home = vary(bench, quantized.model, name, quantized=quantized).bench
        form = formed(home, MIXED)
        after = task.score(outputs(home, MIXED, form, "test", as_deployed=True, anew=True), targets)
        drop = certify_drop(before, after, 0.01, 0.95, task.exact)
        size = form_bytes(form)
        row = {"score": 100 * float(after.mean()), "drop_pt": points(drop), "size_mb": size / 1e6, "smaller": whole / size, "minutes": seconds / 60}
        rows.append({"name": name, **row})

    for name, config in WAYS.items():
        begun = time.perf_counter()
        start = quantize(model, config.model_copy(update={"reduce_range": bench.recipe.reduce_range}), calibration(task, bench.seed))
        judged(f"{name}, calibrated", start, time.perf_counter() - begun)
        begun = time.perf_counter()
        judged(f"{name}, trained for an epoch", qat_for_task(model, start, task, LESSON, cache, progress), time.perf_counter() - begun)
    return on(machine) | {"rows": rows}


def table(document: dict[str, Any]) -> str:
    """The rows as one Markdown table, with the machine below."""
    shown = [
        [
            row["name"],
            f"{row['score']:.2f}",
            spread(row["drop_pt"]),
            f"{row['size_mb']:.1f}",
            f"{row['smaller']:.1f}",
            f"{row['minutes']:.1f}",
        ]
        for row in document["rows"]
    ]
    headers = ["way", "test score, %", "drop, pt", "size, MB", "times smaller", "minutes to make"]
    return f"{markdown_table(shown, headers)}\n\n{made_on(document)}"


def main() -> None:
    """Run, print, and write the table into the docs when asked."""
    publish(options(__doc__, "quantization").parse_args(), run, table)


if __name__ == "__main__":
    main()
