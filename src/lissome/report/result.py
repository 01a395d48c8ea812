"""What a finished optimisation leaves and says: the report beside the artifact, the text for the terminal, the JSON document."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lissome.core.errors import ContractNotMet
from lissome.core.manifest import read_manifest
from lissome.optimize.artifact import artifact_name
from lissome.optimize.run import Optimized
from lissome.report.html import write_report
from lissome.report.terminal import before_after_table, options_table, verdict_text


@dataclass(frozen=True)
class Finished:
    """document: for --json. text: strings and tables for the terminal. exit_code: 0 when met, 3 otherwise."""

    document: dict[str, Any]
    text: tuple[Any, ...]
    exit_code: int


def finish(result: Optimized) -> Finished:
    """Write the report and put the outcome into words."""
    manifest = result.manifest if result.folder is None else read_manifest(result.folder)
    folder = result.folder or Path("runs") / f"{artifact_name(manifest)}-infeasible"
    folder.mkdir(parents=True, exist_ok=True)
    report = write_report(manifest, folder / "report.html")
    document = {"artifact": str(result.folder) if result.folder else None, "report": str(report), **manifest.model_dump(mode="json")}
    where = [f"Artifact  {result.folder}"] if result.folder else []
    text = (verdict_text(manifest), before_after_table(manifest), options_table(manifest), "\n".join([*where, f"Report    {report}"]))
    return Finished(document, text, 0 if result.verdict.status == "met" else ContractNotMet.exit_code)
