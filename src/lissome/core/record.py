"""What a verb notes beside the model it wrote: a dataclass of figures as JSON, and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from lissome.core.config import Config
from lissome.core.errors import BadArtifact

T = TypeVar("T")


def write_record(path: Path, found: Any, config: Config, model: str, task: str) -> None:
    """Write `found`, a dataclass, with the config it came of and the fingerprints of the model it began with and of the task."""
    import pydantic

    figures: dict[str, Any] = pydantic.TypeAdapter(type(found)).dump_python(found, mode="json")
    record = {**figures, "config": config.model_dump(mode="json"), "model": model, "task": task}
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")


def read_record(kind: type[T], path: Path, verb: str) -> T:
    """The dataclass `kind` that `write_record` wrote. verb: what makes such records, for the error. Raises BadArtifact where there is none."""
    import pydantic

    try:
        known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        record = json.loads(path.read_text(encoding="utf-8"))
        return pydantic.TypeAdapter(kind).validate_python({name: value for name, value in record.items() if name in known})
    except (OSError, ValueError, AttributeError) as error:
        raise BadArtifact(
            f"{path.name} cannot be read: {str(error).splitlines()[0]}", where=str(path.parent), expected=f"a folder that `lissome {verb}` wrote"
        ) from error
