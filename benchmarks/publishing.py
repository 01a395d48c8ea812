"""What the benchmarks share: their options, what every document says of the machine, and how figures are laid out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lissome.core.manifest import MachineInfo
from lissome.core.measurement import Measurement
from lissome.core.progress import Progress, terminal
from lissome.core.statistics import DropTest
from lissome.machine.versions import versions
from lissome.report.markdown import update_marked_block

Document = dict[str, Any]


def options(doc: str | None, block: str) -> argparse.ArgumentParser:
    """The options that every benchmark has. doc: the benchmark's own docstring; block: the name of its markers in the docs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(block=block)
    parser.add_argument("--json", action="store_true", help="print the JSON document instead of the table")
    parser.add_argument("--write", type=Path, help=f"a Markdown file with <!-- {block} --> markers to write the table into")
    return parser


def publish(given: argparse.Namespace, run: Callable[[Progress], Document], table: Callable[[Document], str]) -> None:
    """Run a benchmark, print its table or its JSON document, and write the table into the docs when asked."""
    with terminal() as progress:
        document = run(progress)
    document["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    print(json.dumps(document, indent=1) if given.json else table(document))
    if given.write:
        update_marked_block(given.write, given.block, table(document))


def on(machine: MachineInfo) -> Document:
    """What a document says of where it was made."""
    return {"machine": machine.fingerprint, "cpu": machine.cpu, "versions": versions()}


def made_on(document: Document) -> str:
    """The same as the last line of a table: machine, date and versions."""
    used = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return f"{document['cpu']}, {document['machine']}, {document['created'][:10]}. {used}."


def plain(figure: Measurement | None) -> Document | None:
    """A figure as the documents have it."""
    return None if figure is None else {"value": figure.value, "low": figure.low, "high": figure.high, "unit": figure.unit, "n": figure.n}


def points(drop: DropTest) -> Document:
    """A drop in points, as the documents have figures."""
    return {"value": 100 * drop.drop, "low": 100 * drop.low, "high": 100 * drop.upper, "unit": "pt", "n": drop.n}


def spread(figure: Mapping[str, Any] | None, places: int = 2) -> str:
    """A figure with its interval: "1.23 [1.20, 1.27]"; empty where there is none."""
    return "" if figure is None else f"{figure['value']:.{places}f} [{figure['low']:.{places}f}, {figure['high']:.{places}f}]"
