"""The manifest: everything an artifact knows about itself, as one schema-versioned JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import pydantic

from lissome.core.cache import disk_errors
from lissome.core.config import Config
from lissome.core.contract import Contract, Verdict
from lissome.core.errors import BadArtifact
from lissome.core.measurement import Measurement
from lissome.core.model import Architecture
from lissome.core.task import Padding, SplitName

SCHEMA: Final = 1
Precision = Literal["fp32", "bf16", "int8-dynamic", "int8-static", "mixed"]
"""Of a whole model, as its engine makes it; "mixed" is a precision per layer, from lissome's own quantisation."""


class Option(Config):
    """One way to run the model: engine x precision x padding. change: what was changed in the model itself, in a few words; empty for nothing."""

    engine: str
    precision: Precision
    padding: Padding = "longest"
    change: str = ""

    @property
    def name(self) -> str:
        """Short unique name, as shown in tables: "openvino int8-static, padded to 16"."""
        tail = {"longest": "", "multiple-of-16": ", padded to 16", "fixed": ", fixed length"}[self.padding]
        return f"{self.engine} {self.precision}{tail}" + (f", {self.change}" if self.change else "")


class Tried(Config):
    """One option with what was learned of it.

    drop: accuracy drop on the validation split (pt, interval). figures: latency_p50, latency_p95, memory, size, throughput...
    parity: relative L2 distance of its outputs to the original's on real inputs.
    outcome: chosen | dominated | over limit | failed | skipped; why: one sentence.
    """

    option: Option
    outcome: Literal["original", "chosen", "dominated", "over limit", "failed", "skipped"]
    why: str
    drop: Measurement | None = None
    figures: tuple[Measurement, ...] = ()
    parity: float | None = None
    on_front: bool = False

    def figure(self, name: str) -> Measurement | None:
        """The figure of that name, if taken."""
        return next((f for f in self.figures if f.name == name), None)


class PartOption(Config):
    """One thing that can be done to a part of the model, by itself.

    loss: how far the model's outputs then lie from the original's on the hardest validation examples (mean KL divergence in nats for classes).
    saves: milliseconds a call; memory: MB of peak resident memory; size: MB of files: all measured on the target engine with the whole model, negative
    where it costs them.
    """

    name: str
    loss: Measurement
    saves: Measurement
    memory: Measurement | None = None
    size: Measurement | None = None


class PartChoice(Config):
    """What the plan does to one part of the model, among what it could have done. chosen: the name of one of `options`."""

    part: str
    chosen: str
    options: tuple[PartOption, ...]

    @property
    def taken(self) -> PartOption:
        """The chosen option."""
        return next(option for option in self.options if option.name == self.chosen)


class MachineInfo(Config):
    """The machine in words, as `lissome probe` found it."""

    fingerprint: str
    cpu: str
    cores: int
    ram_mb: float
    isa: tuple[str, ...]
    noise: str = ""


class TaskInfo(Config):
    """The task as the artifact remembers it. classes: label names by output index. data: hash of its inputs and targets ("": written before there was one)."""

    ref: str
    name: str
    kind: str
    fingerprint: str
    sizes: Mapping[SplitName, int]
    classes: tuple[str, ...] = ()
    data: str = ""


class ModelInfo(Config):
    """The original model: what was typed, its content hash, how to build it, how its inputs are called (in order)."""

    ref: str
    fingerprint: str
    architecture: Architecture
    inputs: tuple[str, ...] = ()


class Manifest(Config):
    """An artifact's manifest.json.

    accuracy: score of original and chosen on the test split, and the certified drop. tried: every option, the original first.
    seen: how often this test split has been used for a verdict on this model, this time included.
    parts: the plan part by part, where it is not the same for the whole model. steps: what was done in turn, with the minutes it took.
    files: relative path -> sha256 of everything beside the manifest, the report apart.
    """

    schema_version: Literal[1] = SCHEMA
    created: str
    lissome: str
    model: ModelInfo
    task: TaskInfo
    contract: Contract
    verdict: Verdict
    plan: Option
    machine: MachineInfo
    original_score: Measurement | None = None
    chosen_score: Measurement | None = None
    drop: Measurement | None = None
    tried: tuple[Tried, ...]
    parts: tuple[PartChoice, ...] = ()
    steps: tuple[str, ...] = ()
    seen: int = 1
    seed: int = 0
    spent_seconds: float = 0.0
    versions: Mapping[str, str]
    replay: str
    files: Mapping[str, str] = {}

    @property
    def original(self) -> Tried:
        """The original, as measured in the same run."""
        return next(t for t in self.tried if t.outcome == "original")

    @property
    def chosen(self) -> Tried:
        """The plan's own row; the original's, when nothing better was found."""
        return next((t for t in self.tried if t.outcome == "chosen"), self.original)


def write_manifest(manifest: Manifest, folder: Path) -> Path:
    """Write `folder/manifest.json` atomically; return its path. Raises EnvironmentLacks when the disk is full or read-only."""
    path = folder / "manifest.json"
    temporary = path.with_suffix(".json.tmp")
    with disk_errors("manifest.json", folder):
        try:
            temporary.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`. Raises BadArtifact when it is absent, broken or of a newer schema."""
    import json

    path = folder / "manifest.json"
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadArtifact(
            "this is not a lissome artifact: it has no manifest.json", where=str(folder), do="lissome optimize MODEL --task TASK makes one"
        ) from None
    except (OSError, ValueError) as error:
        raise BadArtifact(f"manifest.json cannot be read: {error}", where=str(folder)) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA:
        raise BadArtifact(
            f"manifest.json has schema version {version}; this lissome reads version {SCHEMA}",
            where=str(path),
            do="use the lissome that wrote it, or optimize again",
        )
    try:
        return Manifest.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise BadArtifact(f"manifest.json does not fit its schema at {'.'.join(map(str, first['loc']))}: {first['msg']}", where=str(path)) from error
