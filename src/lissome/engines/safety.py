"""What must hold before a form is loaded: a form may come from someone else, and loading some files can run code."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from lissome.core.errors import BadArtifact
from lissome.core.trust import check_target

VOUCHED = "LISSOME_FORMS_CHECKED"
"""Set for a measured process only: its parent has checked every form that it asks for."""


def check_form(form: Path) -> None:
    """Raise BadArtifact unless the form can be loaded without running code that the user did not name.

    Forms in a cache are lissome's own hand-over between its processes: only they may be in torch's own format, which is read by unpickling.
    """
    path = form / "form.json"
    if os.environ.get(VOUCHED) == "1" or not path.is_file():  # without one, the engine says what is missing
        return
    described = _read(path)
    file = described.get("file")
    if not isinstance(file, str) or not (form / file).resolve().is_relative_to(form.resolve()):
        raise BadArtifact("its form.json names a file outside its own folder.", where=str(path), do="do not use it; ask whoever made it")
    if _from_cache(form):
        return
    if file.endswith(".pt2"):
        raise BadArtifact(f"{file} is in torch's own format, which can run code when it is read.", where=str(path), do="optimize again from a factory")
    if (form / "architecture.json").is_file():
        architecture = _read(form / "architecture.json")
        if architecture.get("kind") == "factory":
            check_target(str(architecture.get("target")), str(form / "architecture.json"), BadArtifact)


def _from_cache(form: Path) -> bool:
    """Whether the folder is a cache's entry; that of an artifact is always called engine."""
    return form.parent.name == "forms" and re.fullmatch("[0-9a-f]{16}", form.name) is not None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadArtifact(f"it cannot be read: {error}", where=str(path), do="copy it again from where it was made") from error
    if not isinstance(value, dict):
        raise BadArtifact("it holds no keys and values.", where=str(path), do="copy it again from where it was made")
    return value
