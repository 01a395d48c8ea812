"""Configs are data: frozen, strict about unknown keys, and they survive a round trip through JSON and YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from lissome.core.errors import BadConfig, closest

C = TypeVar("C", bound="Config")


class Config(pydantic.BaseModel):
    """Base of every configuration: immutable, unknown keys are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def read_yaml(path: Path, schema: type[C]) -> C:
    """Read `path` into `schema`. Raises BadConfig as `file:line: what`, naming the nearest known key."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadConfig(f"cannot read it: {error.strerror}", where=str(path), do="check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise BadConfig("it is not UTF-8 text", where=str(path), expected="a YAML file") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise BadConfig(f"not valid YAML: {getattr(error, 'problem', error)}", where=f"{path}{line}") from error
    if not isinstance(data, dict):
        raise BadConfig("expected keys and values", where=f"{path}:1", expected=", ".join(schema.model_fields))
    try:
        return schema.model_validate(data)
    except pydantic.ValidationError as error:
        raise config_error(error, schema, str(path), node) from error


def config_error(error: pydantic.ValidationError, schema: type[Config], file: str, node: yaml.Node | None = None) -> BadConfig:
    """The first complaint of a ValidationError as a BadConfig with its line."""
    problem = error.errors()[0]
    keys = [part for part in problem["loc"] if not str(part).startswith("function-")]
    name = ".".join(str(part) for part in keys) or "(whole file)"
    line = line_of(node, keys) if node is not None else None
    where = f"{file}:{line}" if line else file
    if problem["type"] == "extra_forbidden":
        known = known_keys(schema, keys[:-1])
        return BadConfig(f'unknown key "{name}".{closest(str(keys[-1]), known)}', where=where, expected=", ".join(known))
    if problem["type"] == "missing":
        return BadConfig(f'the key "{name}" is missing', where=where, do=f"add `{keys[-1]}: ...`")
    message = problem["msg"].removeprefix("Value error, ")
    return BadConfig(f'"{name}": {message} (found {problem["input"]!r})', where=where)


def known_keys(schema: type[Config], path: list[Any]) -> list[str]:
    """Key names of `schema` at the nested `path`; the top level where the path leads out of known configs."""
    for part in path:
        field = schema.model_fields.get(str(part))
        inner = field.annotation if field else None
        options = [inner, *getattr(inner, "__args__", ())]
        nested = next((o for o in options if isinstance(o, type) and issubclass(o, Config)), None)
        if nested is None:
            break
        schema = nested
    return list(schema.model_fields)


def line_of(node: yaml.Node, keys: list[Any]) -> int | None:
    """1-based line of the deepest part of `keys` that exists below `node`."""
    line = None
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            return line
    return line
