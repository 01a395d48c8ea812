"""What the docs show is what the code takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
import yaml

from lissome.cli import main
from lissome.core.contract import parse_limit
from lissome.core.manifest import Manifest
from lissome.core.task import Task
from lissome.data.tasks.assemble import check_splits
from lissome.data.tasks.config import KINDS

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if page.exists())]


def blocks(page: Path, *languages: str) -> list[str]:
    """Fenced blocks of the given languages ("" is none), without their indentation."""
    fences = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.S | re.M)
    return ["\n".join(line.removeprefix(indent) for line in body.splitlines()) for indent, language, body in fences if language in languages]


def commands() -> Iterator[tuple[str, str]]:
    """Every `lissome ...` line of the docs."""
    for page in PAGES:
        for block in blocks(page, "", "sh", "console"):
            yield from ((page.name, line) for line in block.splitlines() if line.startswith("lissome "))


def test_every_task_shown_fits_its_schema() -> None:
    shown = [yaml.safe_load(text) for page in PAGES for text in blocks(page, "yaml")]
    tasks = [one for one in shown if isinstance(one, dict) and "kind" in one]
    assert {one["kind"] for one in tasks} == set(KINDS)
    for one in tasks:
        KINDS[one["kind"]].model_validate(one)


def test_the_task_in_python_is_a_task() -> None:
    text = next(block for block in blocks(ROOT / "docs" / "tasks.md", "python") if "def my_task" in block)
    space: dict[str, Any] = {}
    exec(text, space)
    task = check_splits(space["my_task"](), "my_tasks:my_task")
    assert isinstance(task, Task)
    batch = task.collate(task.splits["test"].inputs[:3], "longest")
    assert batch["features"].shape == (3, 8)
    assert task.score(np.eye(2), np.array([0, 0])).tolist() == [1.0, 0.0]


def test_commands_are_found() -> None:
    assert {"index.md", "quickstart.md", "measuring.md", "artifact.md"} <= {page for page, _ in commands()}


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_every_command_shown_exists_with_its_options(page: str, line: str) -> None:
    main._register()
    command: Any = typer.main.get_command(main.app)
    words = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{page}: {line}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_every_limit_in_the_table_parses() -> None:
    table = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8").split("## Limits")[1].split("Units:")[0]
    quantity, count = "", 0
    for row in re.findall(r"^\|(.*?)\|(.*?)\|", table, re.M):
        quantity = row[0].strip(" `-").replace("-", "_") or quantity
        if quantity in ("max_drop", "latency", "memory", "size", "energy"):
            for text in re.findall(r"`(.*?)`", row[1]):
                parse_limit(quantity, text)  # type: ignore[arg-type]
                count += 1
    assert count >= 12


def test_the_manifest_page_names_every_field() -> None:
    page = (ROOT / "docs" / "artifact.md").read_text(encoding="utf-8")
    assert [name for name in Manifest.model_fields if f"`{name}`" not in page] == []
