"""Claims as files: what somebody says a technique does, the benchmark that tries it here, and the verdict.

A claim is a YAML file in `claims/`; what its benchmark gave is kept beside it in `claims/results/`, and both together make the page docs/claims.md.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from lissome.core.config import Config, read_yaml
from lissome.core.errors import BadInput, EnvironmentLacks, LissomeError, closest
from lissome.core.measurement import digits
from lissome.core.progress import Progress
from lissome.report.markdown import markdown_table

Outcome = Literal["met", "not met", "bounded", "not testable here", "not run"]


class Check(Config):
    """One figure of a claim. read: where it stands in the benchmark's JSON, as "rows[lissome].speedup": keys, and the name of a
    list's entry in brackets; a number, or {"value", "low", "high"}. at_least, at_most: what it is held against, one of them."""

    what: str
    read: str
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @pydantic.model_validator(mode="after")
    def _one_bound(self) -> Check:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give at_least or at_most, one of them")
        return self


class Claim(Config):
    """What is claimed, and how it is tried.

    says: the figure as its source gives it. data, baseline, seeds: what it is tried on, against what, and from which random starts. command: the
    benchmark, which prints JSON; without one, `untestable` says why there is none. condition: under which alone the checks can hold.
    """

    title: str
    says: str
    data: str
    baseline: str
    seeds: tuple[int, ...] = (0,)
    command: str | None = None
    checks: tuple[Check, ...] = ()
    condition: str | None = None
    untestable: str | None = None

    @pydantic.model_validator(mode="after")
    def _testable_or_not(self) -> Claim:
        if (self.command is None) == (self.untestable is None) or (self.command is not None and not self.checks):
            raise ValueError("give a command with checks, or `untestable` with the reason")
        return self


class Figure(Config):
    """What a check read; None where the benchmark reached no such figure."""

    what: str
    value: float | None
    low: float | None
    high: float | None


class Found(Config):
    """What a benchmark gave for a claim: a figure for every check."""

    created: str
    cpu: str
    figures: tuple[Figure, ...]


def read_claims(folder: Path) -> dict[str, Claim]:
    """The claims in a folder, by file name. Raises BadInput where there is none."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise BadInput("there is no claim here.", where=str(folder), expected="files NAME.yaml", do="run it in lissome's source tree, or give --folder")
    return {path.stem: read_yaml(path, Claim) for path in paths}


def try_claims(folder: Path, names: Sequence[str], progress: Progress) -> dict[str, Found]:
    """Run the benchmarks of the claims `names` (all, when empty), each command once, and keep what they gave.

    A benchmark that fails does not keep the others from running. Raises BadInput for an unknown name; at the end, EnvironmentLacks for benchmarks that
    failed and BadInput for figures that are not in what a benchmark printed.
    """
    claims = read_claims(folder)
    for name in names:
        if name not in claims:
            raise BadInput(f'there is no claim "{name}".{closest(name, list(claims))}', where=str(folder), expected=", ".join(claims))
    chosen = {name: claim for name, claim in claims.items() if claim.command and (not names or name in names)}
    printed: dict[str, dict[str, Any] | LissomeError] = {}
    found: dict[str, Found] = {}
    troubles: list[LissomeError] = []
    for name, claim in chosen.items():
        assert claim.command is not None
        try:
            if claim.command not in printed:
                progress.stage(claim.command)
                printed[claim.command] = _run(claim.command, folder.resolve().parent)
            document = printed[claim.command]
            if isinstance(document, LissomeError):
                continue
            found[name] = judge(claim, document)
            keep(folder, name, found[name])
        except LissomeError as error:
            printed.setdefault(claim.command, error)
            troubles.append(error)
            progress.say(str(error))
    if troubles:
        raise troubles[0]
    return found


def keep(folder: Path, name: str, found: Found) -> None:
    """Write what a benchmark gave beside the claim."""
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")


def kept(folder: Path, name: str) -> Found | None:
    """What was kept of a claim, or None where it was never tried."""
    path = folder / "results" / f"{name}.json"
    return Found.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None


def judge(claim: Claim, document: Mapping[str, Any]) -> Found:
    """Hold what a benchmark printed against the claim's checks."""
    figures = []
    for check in claim.checks:
        value = _at(document, check.read)
        spread = value if isinstance(value, Mapping) else {"value": value, "low": value, "high": value}
        figures.append(Figure(what=check.what, value=spread["value"], low=spread["low"], high=spread["high"]))
    return Found(created=str(document.get("created", ""))[:10], cpu=str(document.get("cpu", "")), figures=tuple(figures))


def holds(check: Check, figure: Figure) -> bool:
    """Whether the whole interval keeps the check's bound; what was not reached does not."""
    if check.at_least is not None:
        return figure.low is not None and figure.low >= check.at_least
    return figure.high is not None and check.at_most is not None and figure.high <= check.at_most


def verdict(claim: Claim, found: Found | None) -> Outcome:
    """`met` when every check holds with its whole interval, `bounded` when that is so under the claim's condition alone; `not run` when never tried
    with these checks."""
    if claim.untestable:
        return "not testable here"
    if found is None or [figure.what for figure in found.figures] != [check.what for check in claim.checks]:
        return "not run"
    if not all(holds(check, figure) for check, figure in zip(claim.checks, found.figures, strict=True)):
        return "not met"
    return "bounded" if claim.condition else "met"


def page(folder: Path) -> str:
    """The table of all claims, Markdown."""
    rows, notes = [], []
    for name, claim in read_claims(folder).items():
        found = kept(folder, name)
        outcome = verdict(claim, found)
        ran = found is not None and outcome not in ("not run", "not testable here")
        measured = "; ".join(_shown(figure, check) for figure, check in zip(found.figures, claim.checks, strict=True)) if found and ran else "-"
        rows.append([f"[{claim.title}](#{name})", claim.says, measured, outcome])
        notes.append(_note(name, claim, found))
    return markdown_table(rows, ["claim", "as claimed", "measured here (target)", "verdict"]) + "\n\n" + "\n\n".join(notes)


def _note(name: str, claim: Claim, found: Found | None) -> str:
    lines = [f"### {claim.title} {{ #{name} }}", f"Data: {claim.data}. Baseline: {claim.baseline}. Seeds: {', '.join(map(str, claim.seeds))}."]
    if claim.untestable:
        lines.append(f"Not testable here: {claim.untestable}")
    if claim.condition:
        lines.append(f"Condition: {claim.condition}")
    if claim.command:
        lines.append(f"`{claim.command}`" + (f", {found.created}, {found.cpu}." if found else ": not run yet."))
    return "\n\n".join(lines)


def _shown(figure: Figure, check: Check) -> str:
    target = f">= {check.at_least:g}" if check.at_least is not None else f"<= {check.at_most:g}"
    if figure.value is None or figure.low is None or figure.high is None:
        return f"{figure.what} not reached ({target})"
    spread = "" if figure.low == figure.high else f" [{digits(figure.low)}, {digits(figure.high)}]"
    return f"{figure.what} {digits(figure.value)}{spread} {check.unit} ({target})".replace("  ", " ")


def _run(command: str, root: Path) -> dict[str, Any]:
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    try:
        done = subprocess.run(words, cwd=root, stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise EnvironmentLacks(f"the benchmark cannot be started: {error.strerror}", where=command) from error
    try:
        if done.returncode:
            raise ValueError(f"it ended with exit code {done.returncode}")
        document = json.loads(done.stdout)
        if not isinstance(document, dict):
            raise ValueError("it printed no JSON object")
        return document
    except ValueError as error:
        raise EnvironmentLacks(f"the benchmark failed: {error}", where=command, do="run it by itself to see what it says") from error


def _at(document: Any, path: str) -> Any:
    """The value at a path such as "rows[lissome].speedup"; None where the benchmark gave null."""
    value = document
    for key, name in re.findall(r"([^.\[\]]+)(?:\[([^\]]*)\])?", path):
        inside = isinstance(value, Mapping) and key in value
        value = value[key] if inside else None
        if inside and value is None:
            return None
        if name and isinstance(value, list):
            value = next((one for one in value if one.get("name") == name), None)
        if value is None:
            raise BadInput(f'the benchmark printed no "{path}": there is nothing at "{key}{f"[{name}]" if name else ""}".', expected="a path of its JSON")
    return value
