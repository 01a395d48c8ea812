"""Realistic manifests to draw: invented figures in the shape of real runs."""

from __future__ import annotations

import math

from lissome.core.contract import Clause, Contract, Verdict
from lissome.core.manifest import MachineInfo, Manifest, ModelInfo, Option, TaskInfo, Tried
from lissome.core.measurement import Measurement
from lissome.core.model import Architecture

FINGERPRINT = "c2f0-amx-2core"


def measured(name: str, value: float, half: float, unit: str, n: int = 40, method: str = "measured") -> Measurement:
    return Measurement(name, value, value - half, value + half, unit, n, method, FINGERPRINT)  # type: ignore[arg-type]


def figures(p50: float, p95: float, memory: float, size: float, batch: int = 32) -> tuple[Measurement, ...]:
    return (
        measured("latency_p50", p50, p50 * 0.03, "ms"),
        measured("latency_p95", p95, p95 * 0.06, "ms"),
        measured("throughput", 1000 * batch / (p50 * 14), 1000 * batch / (p50 * 14) * 0.04, "1/s"),
        measured("memory", memory, memory * 0.01, "MB", n=3),
        Measurement("size", size, size, size, "MB", 1, "counted", FINGERPRINT),
    )


def tried(
    engine: str,
    precision: str,
    outcome: str,
    why: str,
    numbers: tuple[float, float, float, float] | None = None,
    drop: tuple[float, float] | None = None,
    padding: str = "longest",
    front: bool = False,
    parity: float | None = None,
) -> Tried:
    return Tried(
        option=Option(engine=engine, precision=precision, padding=padding),  # type: ignore[arg-type]
        outcome=outcome,  # type: ignore[arg-type]
        why=why,
        drop=measured("max_drop", drop[0], drop[1], "pt", n=2400) if drop else None,
        figures=figures(*numbers) if numbers else (),
        on_front=front,
        parity=parity,
    )


ENCODER = (
    tried("torch", "fp32", "original", "The model as it was given.", (7.47, 8.31, 402, 90.9), None),
    tried("torch", "bf16", "dominated", "openvino bf16 is faster at the same drop.", (4.92, 5.40, 371, 45.5), (0.04, 0.21), parity=0.0061),
    tried("torch", "int8-dynamic", "dominated", "onnxruntime int8-dynamic is faster and drops less.", (4.31, 4.9, 344, 38.1), (0.42, 0.46), parity=0.041),
    tried("torch.compile", "fp32", "dominated", "openvino fp32 is faster and needs less memory.", (4.88, 5.21, 455, 90.9), (0.0, 0.0), parity=2e-7),
    tried("torch.compile", "bf16", "dominated", "openvino bf16 is faster.", (3.31, 3.62, 431, 45.5), (0.04, 0.21), parity=0.0061),
    tried("onnxruntime", "fp32", "dominated", "openvino fp32 is faster.", (4.71, 5.02, 248, 90.7), (0.0, 0.0), parity=3e-7),
    tried("onnxruntime", "int8-dynamic", "dominated", "openvino int8-static is faster.", (2.92, 3.20, 141, 23.1), (0.25, 0.38), parity=0.031),
    tried(
        "onnxruntime",
        "int8-static",
        "over limit",
        "Accuracy drop 3.4 pt, upper bound 4.1, is over the limit of 1 pt on validation.",
        (2.55, 2.81, 139, 23.0),
        (3.40, 0.72),
        parity=0.22,
    ),
    tried("openvino", "fp32", "dominated", "openvino bf16 is faster at no measurable drop.", (3.62, 3.85, 233, 90.8), (0.0, 0.0), parity=3e-7),
    tried(
        "openvino",
        "bf16",
        "dominated",
        "On the front: smallest drop below 3 ms. The chosen option is faster and within the limit.",
        (2.03, 2.21, 176, 45.6),
        (0.04, 0.21),
        front=True,
        parity=0.0060,
    ),
    tried(
        "openvino",
        "bf16",
        "dominated",
        "Padding to 16 costs time at this length.",
        (2.41, 2.60, 178, 45.6),
        (0.04, 0.21),
        padding="multiple-of-16",
        parity=0.0060,
    ),
    tried(
        "openvino",
        "int8-static",
        "chosen",
        "Fastest option whose drop is certified below 1 pt on validation.",
        (1.06, 1.14, 96, 23.4),
        (0.33, 0.42),
        padding="multiple-of-16",
        front=True,
        parity=0.033,
    ),
    tried(
        "openvino",
        "int8-static",
        "dominated",
        "The same with padding to 16 is faster.",
        (1.19, 1.33, 98, 23.4),
        (0.33, 0.42),
        parity=0.033,
    ),
    tried("openvino", "int8-static", "dominated", "Fixed length wastes work on short texts.", (3.9, 4.0, 97, 23.4), (0.33, 0.42), padding="fixed"),
    tried(
        "torch.compile",
        "int8-static",
        "failed",
        "Parity: outputs differ from the original by 41 % of their spread; first diverging layer: encoder.layer.3.attention.output.dense.",
    ),
    tried("executorch", "int8-static", "skipped", 'executorch is not installed; pip install "lissome[executorch]" brings it.'),
)
MACHINE = MachineInfo(
    fingerprint=FINGERPRINT,
    cpu="Intel(R) Xeon(R) Platinum 8488C",
    cores=2,
    ram_mb=7931.0,
    isa=("avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8"),
    noise="Quiet: the same measurement repeated varied by 1.8 % (median of 40 rounds); steal time 0.3 %.",
)
TASK = TaskInfo(
    ref="sentiment.yaml",
    name="sentiment",
    kind="text-classification",
    fingerprint="9d2a41c07be1f3aa",
    sizes={"train": 12412, "calibration": 512, "validation": 2400, "test": 5840},
    classes=("negative", "positive"),
)
MODEL = ModelInfo(
    ref="runs/sentiment/model",
    fingerprint="77ab09e2c1d4f560",
    architecture=Architecture(kind="huggingface", target="BertForSequenceClassification", config={"hidden_size": 384}),
    inputs=("input_ids", "attention_mask"),
)
VERSIONS = {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0", "onnxruntime": "1.27.0", "openvino": "2026.2.0", "nncf": "3.1.0"}


def clause(limit: str, status: str, figure: Measurement | None, original: Measurement | None, sentence: str) -> Clause:
    return Clause(limit=limit, status=status, figure=figure, original=original, sentence=sentence)  # type: ignore[arg-type]


def met() -> Manifest:
    """MiniLM on sentiment, every limit met."""
    drop = Measurement("max_drop", 0.31, -0.12, 0.78, "pt", 5840, "measured", FINGERPRINT)
    chosen, original = ENCODER[11], ENCODER[0]
    return Manifest(
        created="2025-03-04T10:21:07+00:00",
        lissome="0.1.0",
        model=MODEL,
        task=TASK,
        contract=Contract(max_drop="1pt", latency="2x", memory="200MB"),
        verdict=Verdict(
            status="met",
            summary="All three limits hold on this machine with 95 % confidence.",
            clauses=(
                clause(
                    "accuracy drop <= 1 pt",
                    "met",
                    drop,
                    None,
                    "accuracy drop <= 1 pt (95 %): measured 0.31, upper bound 0.78, n = 5,840 test examples, seen once",
                ),
                clause(
                    "latency p50 at least 2x below the original",
                    "met",
                    chosen.figure("latency_p50"),
                    original.figure("latency_p50"),
                    "latency p50 at least 2x below the original, 3.74 ms: 1.06 [1.03, 1.09] ms, was 7.47 (7.0x)",
                ),
                clause("memory <= 200 MB", "met", chosen.figure("memory"), original.figure("memory"), "memory <= 200 MB: 96 [95, 97] MB, was 402 (4.2x)"),
            ),
        ),
        plan=chosen.option,
        machine=MACHINE,
        original_score=measured("score", 84.12, 0.94, "%", n=5840),
        chosen_score=measured("score", 83.81, 0.95, "%", n=5840),
        drop=drop,
        tried=ENCODER,
        seen=1,
        seed=0,
        spent_seconds=187.4,
        versions=VERSIONS,
        replay="lissome optimize runs/sentiment/model --task sentiment.yaml --max-drop 1pt --latency 2x --memory 200MB --seed 0",
        files={"model.safetensors": "ab" * 32, "engine/model.xml": "cd" * 32, "engine/model.bin": "0f" * 32},
    )


def not_met() -> Manifest:
    """The plan passed on validation and failed on test: too few examples to certify the drop."""
    base = met()
    drop = Measurement("max_drop", 0.81, -0.6, 2.2, "pt", 620, "measured", FINGERPRINT)
    return base.model_copy(
        update={
            "task": TASK.model_copy(update={"sizes": {"train": 1200, "calibration": 128, "validation": 400, "test": 620}}),
            "contract": Contract(max_drop="1pt", latency="p95 1ms", memory="200MB"),
            "drop": drop,
            "seen": 3,
            "verdict": Verdict(
                status="not met",
                summary="One limit of three holds. The latency limit is missed, and the test split is too small to certify the accuracy limit.",
                clauses=(
                    clause(
                        "accuracy drop <= 1 pt",
                        "cannot certify",
                        drop,
                        None,
                        "accuracy drop <= 1 pt (95 %): measured 0.81, upper bound 2.2, n = 620; about 4,100 test examples are needed to certify it",
                    ),
                    clause(
                        "latency p95 <= 1 ms",
                        "not met",
                        ENCODER[11].figure("latency_p95"),
                        ENCODER[0].figure("latency_p95"),
                        "latency p95 <= 1 ms: 1.14 [1.07, 1.21] ms, was 8.31 (7.3x)",
                    ),
                    base.verdict.clauses[2],
                ),
            ),
        }
    )


def infeasible() -> Manifest:
    """No option reaches the latency limit."""
    base = met()
    options = tuple(
        t.model_copy(update={"outcome": "over limit", "why": "Latency p50 is over the limit of 0.5 ms."})
        if t.outcome in ("chosen", "dominated") and t.figures
        else t
        for t in ENCODER
    )
    return base.model_copy(
        update={
            "contract": Contract(max_drop="0.5pt", latency="0.5ms"),
            "tried": options,
            "drop": None,
            "chosen_score": None,
            "verdict": Verdict(
                status="infeasible",
                summary="No option reaches 0.5 ms. Latency is the limiting factor: the fastest option needs 1.06 ms, 2.1 times the limit.",
                nearest="lissome optimize runs/sentiment/model --task sentiment.yaml --max-drop 0.8pt --latency 1.2ms",
                clauses=(
                    clause(
                        "latency p50 <= 0.5 ms",
                        "not met",
                        ENCODER[11].figure("latency_p50"),
                        ENCODER[0].figure("latency_p50"),
                        "latency p50 <= 0.5 ms: the fastest of 13 options takes 1.06 [1.03, 1.09] ms",
                    ),
                ),
            ),
        }
    )


def infeasible_factor() -> Manifest:
    """As the optimiser words it: clauses in the limits' own terms (times below the original), the test split not used."""
    base = infeasible()
    speedup = Measurement("speedup_latency_p50", 7.05, 6.8, 7.3, "x", 21, "measured", FINGERPRINT)
    drop = Measurement("drop", 0.33, 0.33, 0.81, "pt", 2400, "measured", FINGERPRINT)
    return base.model_copy(
        update={
            "contract": Contract(max_drop="1%rel", latency="20x"),
            "original_score": None,
            "seen": 0,
            "verdict": base.verdict.model_copy(
                update={
                    "clauses": (
                        clause(
                            "accuracy drop <= 1 % of the original score",
                            "met",
                            drop,
                            None,
                            "accuracy drop <= 1 % of the original score: reaches 0.81 % of the original score (what this test split would certify)",
                        ),
                        clause(
                            "latency p50 at least 20x below the original",
                            "not met",
                            speedup,
                            None,
                            "latency p50 at least 20x below the original: reaches 7.05 [6.8, 7.3] x",
                        ),
                    )
                }
            ),
        }
    )


def kept_original() -> Manifest:
    """Nothing faster keeps the limits: the original itself is the plan, and its row is marked chosen."""
    base = met()
    first = base.tried[0].model_copy(update={"outcome": "chosen", "why": "nothing faster keeps every limit", "on_front": True})
    others = tuple(row.model_copy(update={"outcome": "over limit"}) if row.figures else row for row in base.tried[1:])
    return base.model_copy(update={"tried": (first, *others), "plan": first.option})


def digits() -> Manifest:
    """A small CNN on digits: few options, sub-millisecond, NaN and missing figures."""
    options = (
        tried("torch", "fp32", "original", "The model as it was given.", (0.61, 0.70, 310, 0.41)),
        tried("torch", "bf16", "dominated", "Slower than the original here.", (0.93, 1.02, 311, 0.21), (0.0, 0.4)),
        tried("onnxruntime", "fp32", "chosen", "Fastest within the limits.", (0.092, 0.11, 61, 0.42), (0.0, 0.0), front=True, parity=1e-7),
        tried("onnxruntime", "int8-dynamic", "over limit", "Accuracy drop 41 pt.", (0.15, 0.19, 60, 0.13), (41.2, 3.1)),
        tried("openvino", "fp32", "skipped", 'openvino is not installed; pip install "lissome[openvino]" brings it.'),
        tried("torch.compile", "fp32", "failed", "No C++ compiler found; install g++ or clang."),
    )
    broken = options[1].model_copy(
        update={"figures": (*options[1].figures[:3], Measurement("memory", math.nan, math.nan, math.nan, "MB", 0, "measured", FINGERPRINT))}
    )
    options = (options[0], broken, *options[2:])
    base = met()
    drop = Measurement("max_drop", 0.0, 0.0, 0.55, "pt", 540, "measured", FINGERPRINT)
    return base.model_copy(
        update={
            "model": ModelInfo(
                ref="lissome.nn.digits:small_cnn", fingerprint="0a" * 8, architecture=Architecture(kind="factory", target="lissome.nn.digits:small_cnn")
            ),
            "task": TaskInfo(
                ref="digits",
                name="digits",
                kind="image-classification",
                fingerprint="1b" * 8,
                sizes={"train": 900, "calibration": 107, "validation": 250, "test": 540},
                classes=tuple("0123456789"),
            ),
            "contract": Contract(max_drop="1%rel", latency="2x"),
            "verdict": Verdict(
                status="met",
                summary="Both limits hold on this machine with 95 % confidence.",
                clauses=(
                    clause(
                        "accuracy drop <= 1 % of the original score",
                        "met",
                        drop,
                        None,
                        "accuracy drop <= 1 % of the original score, 0.98 pt (95 %): measured 0, upper bound 0.55, n = 540 test examples, seen once",
                    ),
                    clause(
                        "latency p50 at least 2x below the original",
                        "met",
                        options[2].figure("latency_p50"),
                        options[0].figure("latency_p50"),
                        "latency p50 at least 2x below the original, 0.305 ms: 0.092 [0.089, 0.095] ms, was 0.61 (6.6x)",
                    ),
                ),
            ),
            "plan": options[2].option,
            "tried": options,
            "drop": drop,
            "original_score": measured("score", 98.1, 1.1, "%", n=540),
            "chosen_score": measured("score", 98.1, 1.1, "%", n=540),
            "replay": "lissome optimize lissome.nn.digits:small_cnn --task digits --max-drop 1%rel --latency 2x",
        }
    )


def hostile() -> Manifest:
    """Every string a user or a file can set tries to break out of the page."""
    evil = "<script>alert(1)</script>"
    base = met()
    return base.model_copy(
        update={
            "task": base.task.model_copy(update={"name": evil, "classes": (evil, "</script><img src=x onerror=alert(2)>", '"quoted"')}),
            "model": base.model.model_copy(update={"ref": evil}),
            "machine": base.machine.model_copy(update={"cpu": evil, "noise": evil}),
            "replay": f"lissome optimize '{evil}' \" onclick=alert(3) x=\"",
            "tried": (*ENCODER, tried("torch", "fp32", "failed", evil, padding="fixed")),
            "verdict": base.verdict.model_copy(update={"summary": evil}),
        }
    )


ALL = {
    "met": met,
    "not_met": not_met,
    "infeasible": infeasible,
    "infeasible_factor": infeasible_factor,
    "kept_original": kept_original,
    "digits": digits,
    "hostile": hostile,
}
