"""ResNet-50 on CIFAR-10: channels pruned everywhere, taught by the whole model, then quantised on top.

    python benchmarks/resnet50.py [--json] [--write docs/benchmarks.md] [--rounds 21]

The whole model has 23.5M parameters (ten classes) and learns from scratch for four epochs without augmentation. The share that is cut is the smallest that
leaves 8.7M; first-order Taylor importance; the smaller model learns from the whole one for four epochs. All ways then run together, batch 1, a process
each, in rotating order.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "parameters_before": int, "parameters_after": int,
"share": float, "minutes": float, "noise": str, "rows": [{"name": str, "latency_p50": figure, "speedup": figure, "memory_mb": float, "size_mb": float,
"score": percent, "kept_pct": figure}]} with figure = {"value", "low", "high", "unit", "n"}. speedup is against the whole model in torch fp32, kept_pct the
share of its accuracy on the test split, with one-sided bounds at 95 % each.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

from lissome.compress.distill.config import DistillConfig, DistillTaskConfig
from lissome.compress.distill.task import distil_for_task
from lissome.compress.prune import PruneConfig, apply, choose, groups, importance
from lissome.core.cache import Cache
from lissome.core.contract import Contract
from lissome.core.manifest import Option
from lissome.core.model import Model
from lissome.core.progress import Progress
from lissome.core.statistics import certify_drop
from lissome.engines.measure import measure, speedup
from lissome.machine.identity import identify
from lissome.optimize.bench import Bench, make_bench, outputs, vary
from lissome.optimize.options import ORIGINAL
from lissome.optimize.tables import built, subject
from lissome.report.markdown import markdown_table
from lissome.train.batches import Batches
from lissome.train.config import TrainConfig
from lissome.train.finetune import classification_loss
from publishing import made_on, on, options, plain, publish, spread
from vision_models import resnet50

PARAMETERS = 8.7e6
LESSON = DistillTaskConfig(
    terms=DistillConfig(logits=1.0, temperature=2.0, labels=0.3),
    train=TrainConfig(epochs=4, lr=1e-3, warmup=0.1, weight_decay=0.05, schedule="cosine", precision="auto"),
    size=64,
)
WAYS = {
    "torch fp32 (eager)": ORIGINAL,
    "ONNX Runtime fp32": Option(engine="onnxruntime", precision="fp32"),
    "ONNX Runtime int8 static": Option(engine="onnxruntime", precision="int8-static"),
    "OpenVINO fp32": Option(engine="openvino", precision="fp32"),
    "OpenVINO NNCF int8": Option(engine="openvino", precision="int8-static"),
}


def smaller(bench: Bench) -> tuple[Model, float]:
    """The model with the smallest share of every layer's channels cut that leaves PARAMETERS, and that share."""
    found = groups(bench.model, bench.recipe.example)
    lesson = itertools.islice(Batches(bench.task, "train", 64, seed=bench.seed), 16)
    scores = importance(bench.model, found, "taylor", loss=classification_loss(), batches=lesson)
    for percent in range(20, 80, 2):
        cut = apply(bench.model, found, choose(found, scores, PruneConfig(ratio=percent / 100)))
        if parameters(cut) <= PARAMETERS:
            return cut, percent / 100
    raise SystemExit("no share of the channels leaves so few parameters")


def parameters(model: Model) -> int:
    """How many parameters a model has."""
    return sum(one.numel() for one in model.module.parameters())


def run(rounds: int, progress: Progress) -> dict[str, Any]:
    """The whole benchmark as its JSON document."""
    cache, machine = Cache(), identify()
    model, task = resnet50(cache, progress)
    bench = make_bench(model, task, Contract(max_drop="2%"), machine, cache, progress)
    begun = time.perf_counter()
    cut, share = smaller(bench)
    small = vary(bench, distil_for_task(cut, model, task, LESSON, cache, progress), "pruned").bench
    minutes = (time.perf_counter() - begun) / 60
    homes = [(f"{whose}, {name}", home, built(home, option)) for whose, home in (("whole", bench), ("pruned", small)) for name, option in WAYS.items()]
    measured = measure([subject(home, row) for _, home, row in homes], machine.fingerprint, rounds=rounds, threads=bench.threads, progress=progress)
    targets = task.splits["test"].targets
    every = [task.score(outputs(home, row.option, row.form, "test"), targets) for _, home, row in homes]
    rows = []
    for (name, _, row), result, scores in zip(homes, measured.results, every, strict=True):
        figures = {figure.name: figure for figure in result.figures(machine.fingerprint)}
        drop = certify_drop(every[0], scores, 0.02, 0.95, task.exact, relative=True)
        rows.append(
            {
                "name": name,
                "latency_p50": plain(figures["latency_p50"]),
                "speedup": plain(speedup(measured.results[0], result, "latency_p50", machine.fingerprint)),
                "memory_mb": figures["memory"].value,
                "size_mb": row.size / 1e6,
                "score": 100 * float(scores.mean()),
                "kept_pct": {"value": 100 * (1 - drop.drop), "low": 100 * (1 - drop.upper), "high": 100 * (1 - drop.low), "unit": "%", "n": drop.n},
            }
        )
    return on(machine) | {
        "parameters_before": parameters(model),
        "parameters_after": parameters(cut),
        "share": share,
        "minutes": minutes,
        "noise": measured.noise.sentence,
        "rows": rows,
    }


def table(document: dict[str, Any]) -> str:
    """The rows as one Markdown table, with what was cut above and the machine below."""
    shown = [
        [
            row["name"],
            spread(row["latency_p50"]),
            spread(row["speedup"]),
            f"{row['memory_mb']:.0f}",
            f"{row['size_mb']:.1f}",
            f"{row['score']:.2f}",
            spread(row["kept_pct"], 1),
        ]
        for row in document["rows"]
    ]
    before, after = (f"{document[f'parameters_{when}'] / 1e6:.1f}M" for when in ("before", "after"))
    text = f"{before} -> {after} parameters: {document['share']:.0%} of every layer's channels cut, then taught; {document['minutes']:.0f} min in all."
    headers = ["way", "latency p50, ms", "times torch fp32", "peak memory, MB", "size, MB", "test score, %", "accuracy kept, %"]
    return f"{text} {document['noise']}\n\n{markdown_table(shown, headers)}\n\n{made_on(document)}"


def main() -> None:
    """Run, print, and write the table into the docs when asked."""
    parser = options(__doc__, "resnet50")
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args()
    publish(given, lambda progress: run(given.rounds, progress), table)


if __name__ == "__main__":
    main()
