"""What earlier contracts changed, taught and timed: a new limit for the same model is first solved over it, and nothing is measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lissome.core.cache import digest
from lissome.core.errors import LissomeError
from lissome.core.manifest import Option, PartChoice
from lissome.core.model import Model
from lissome.core.quantization import Quantized, read_quantization, write_quantization
from lissome.engines.measure import Result, Subject
from lissome.export.parity import Parity
from lissome.nn.load import load_model
from lissome.optimize.bench import Bench, vary
from lissome.optimize.options import ORIGINAL
from lissome.optimize.tables import Row, plain


def remember(bench: Bench, rows: Sequence[Row]) -> None:
    """Keep the usable rows of changed models for other limits; a row of the same name is replaced."""
    key = _question(bench)
    kept = {entry["name"]: entry for entry in bench.cache.get("variants", key) or ()}
    kept |= {row.option.name: entry for row in rows if (entry := _entry(bench, row)) is not None}
    bench.cache.put("variants", key, list(kept.values()))


def recalled(bench: Bench, original: Row) -> list[Row]:
    """The rows that were remembered, but for those of which something has left the cache. original: the original, timed."""
    models: dict[str, Model] = {}
    return [row for entry in bench.cache.get("variants", _question(bench)) or () if (row := _row(bench, original, entry, models)) is not None]


def _question(bench: Bench) -> str:
    """All that a row depends on: model, task, machine and how calls are made, but no limit."""
    return digest("variants-2", bench.key(ORIGINAL), bench.task.fingerprint, bench.contract.batch, bench.threads, bench.contract.ram, bench.seed)


def _entry(bench: Bench, row: Row) -> dict[str, Any] | None:
    """A row as JSON; None for one that is not usable, or whose model is not in the cache."""
    if not row.usable or row.variant is None or row.form is None or row.parity is None:
        return None
    assert row.scores is not None and row.result is not None and row.original is not None
    root, own = bench.cache.root, row.variant.bench
    folder = Path(own.model.ref)
    if not folder.is_dir() or not folder.is_relative_to(root):
        return None
    if own.quantized is not None:
        quantized = own.quantized
        bench.cache.folder("quantizations", quantized.fingerprint, lambda empty: write_quantization(quantized.quantization, quantized.scales, empty))
    return {
        "name": row.option.name,
        "option": row.option.model_dump(mode="json"),
        "form": str(row.form.relative_to(root)),
        "size": row.size,
        "parity": asdict(row.parity),
        "scores": row.scores.tolist(),
        "result": plain(row.result),
        "original": plain(row.original),
        "model": str(folder.relative_to(root)),
        "quantized": own.quantized.fingerprint if own.quantized else None,
        "change": row.variant.change,
        "parts": [part.model_dump(mode="json") for part in row.variant.parts],
        "steps": row.variant.steps,
    }


def _row(bench: Bench, original: Row, entry: dict[str, Any], models: dict[str, Model]) -> Row | None:
    """The row that an entry stands for; None where something of it is gone or broken. models: those read so far, by folder."""
    import numpy as np

    form, folder = bench.cache.root / entry["form"], bench.cache.root / entry["model"]
    if not (form.is_dir() and folder.is_dir()):
        return None
    try:
        if entry["model"] not in models:
            models[entry["model"]] = load_model(str(folder))
        model, quantized = models[entry["model"]], None
        if entry["quantized"]:
            quantized = Quantized(model, *read_quantization(bench.cache.path("quantizations", entry["quantized"])))
    except LissomeError:
        return None
    option = Option.model_validate(entry["option"])
    assert original.result is not None
    subject = Subject(option.name, option.engine, option.precision, form, (), entry["size"], bench.shapes(option))
    row = Row(option, form, entry["size"], Parity(**entry["parity"]), np.array(entry["scores"]), Result(subject, **entry["result"]))
    row.original = Result(original.result.subject, **entry["original"])
    parts = tuple(PartChoice.model_validate(part) for part in entry["parts"])
    row.variant = vary(bench, model, entry["change"], parts, tuple(entry["steps"]), quantized)
    return row
