"""Parts of models by name. A part is any module; one line makes it known:

    register("ffn", "wide", "my_package.parts:Wide")   # or the class itself

What its constructor takes beside what the model gives it (`GIVEN`) are its options in a config, checked by their annotations; or by the Config that it has
as its attribute `form`, whose fields it takes by name.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import pydantic
from torch import nn

from lissome.core.config import Config
from lissome.core.errors import BadConfig, closest

GIVEN = ("width", "length", "causal", "layer", "embedding")
"""What a model gives a part whose constructor names it: width of the hidden states, most positions, whether the future is hidden, number of the block, and
the embedding module (heads)."""
Maker = Callable[..., nn.Module] | str
_KINDS: dict[str, dict[str, Maker]] = {
    "embedding": {
        "tokens": "lissome.nn.models.embeddings:Tokens",
        "patches": "lissome.nn.models.embeddings:Patches",
    },
    "positions": {
        "learned": "lissome.nn.models.positions:Learned",
        "rotary": "lissome.nn.models.positions:Rotary",
        "none": "lissome.nn.models.positions:Nowhere",
    },
    "attention": {
        "full": "lissome.nn.models.attention:full",
        "sparse": "lissome.nn.models.attention:sparse",
    },
    "ffn": {
        "dense": "lissome.nn.models.ffn:Dense",
        "gated": "lissome.nn.models.ffn:Gated",
        "relu2": "lissome.nn.models.ffn:ReluSquared",
        "thresholded": "lissome.nn.models.ffn:Thresholded",
        "experts": "lissome.nn.moe.as_part:ExpertsPart",
    },
    "norm": {
        "rms": "lissome.nn.models.norms:rms",
        "layer": "lissome.nn.models.norms:layer",
    },
    "head": {
        "lm": "lissome.nn.models.heads:LanguageHead",
        "classification": "lissome.nn.models.heads:ClassificationHead",
        "token": "lissome.nn.models.heads:TokenHead",
        "regression": "lissome.nn.models.heads:RegressionHead",
    },
}
"""Role -> kind -> module, or the place of one that is imported when it is asked for."""


class Part(Config):
    """A part in a config: its kind and the options of that kind."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """All but the kind."""
        return dict(self.__pydantic_extra__ or {})

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


def register(role: str, kind: str, maker: Maker) -> None:
    """Make a part known. `maker` is a module class, a function that returns a module, or where to find one: "package.module:name".

    Interfaces, width being the model's: ffn and norm: forward(x [..., width]) -> [..., width]. attention: forward(x [batch, n, width], padding [batch, n]
    bool or None, angles (cosine, sine), each [1, n, dim], or None) -> [batch, n, width], with `dim`, the width of a head. head: forward(hidden
    [batch, n, width], padding). embedding and positions: as in their files. Raises BadConfig for an unknown role or a name that is taken by another part.
    """
    known = kinds(role)
    if known.get(kind, maker) != maker:
        raise BadConfig(f'there is already another {role} called "{kind}"', do="choose another name")
    known[kind] = maker
    schema.cache_clear()


def kinds(role: str) -> dict[str, Maker]:
    """The parts of a role by name. Raises BadConfig for an unknown role."""
    if role not in _KINDS:
        raise BadConfig(f'there is no role "{role}" in a model.{closest(role, list(_KINDS))}', expected=", ".join(_KINDS))
    return _KINDS[role]


def make(role: str, part: Part, where: str, **given: Any) -> nn.Module:
    """The module of a part. Raises BadConfig with the place in the model where the options do not fit the model's sizes."""
    maker = maker_of(role, part.kind)
    wanted = inspect.signature(maker).parameters
    try:
        return maker(**{name: value for name, value in given.items() if name in wanted}, **part.options)
    except ValueError as error:
        raise BadConfig(f"{part.kind}: {error}", where=where) from error


@functools.cache
def schema(role: str, kind: str) -> type[Config]:
    """The options of a kind as a config of their own."""
    maker: Any = maker_of(role, kind)
    form: type[Config] | None = getattr(maker, "form", None)
    if form is not None:
        return form
    hints = typing.get_type_hints(maker.__init__ if isinstance(maker, type) else maker, include_extras=True)  # type: ignore[misc]
    parameters = inspect.signature(maker).parameters.values()
    options = [one for one in parameters if one.name not in GIVEN and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    fields: dict[str, Any] = {one.name: (hints.get(one.name, Any), ... if one.default is one.empty else one.default) for one in options}
    return pydantic.create_model(f"{role}-{kind}", __base__=Config, **fields)


def read(role: str, value: Any) -> Any:
    """A part from a config: a kind, or a kind and its options; what is left out is filled in. Raises ValueError with the way out, as pydantic wants it."""
    if isinstance(value, Part):
        value = {"kind": value.kind, **value.options}
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise ValueError(f"give a kind of {role}, or `kind:` and its options; there are {', '.join(kinds(role))}")
    kind, options = value["kind"], {name: one for name, one in value.items() if name != "kind"}
    if kind not in kinds(role):
        raise ValueError(f'there is no {role} called "{kind}".{closest(kind, list(kinds(role)))} There are {", ".join(kinds(role))}')
    form = schema(role, kind)
    try:
        filled = form.model_validate(options)
    except pydantic.ValidationError as error:
        raise ValueError(_complaint(role, kind, form, error)) from error
    return Part(kind=kind, **filled.model_dump(mode="json"))


def _complaint(role: str, kind: str, form: type[Config], error: pydantic.ValidationError) -> str:
    errors = error.errors()
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])  # a misspelt option is also a missing one
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f'the {role} "{kind}" has no option "{name}".{closest(name, list(form.model_fields))} It has {", ".join(form.model_fields) or "none"}'
    if first["type"] == "missing":
        return f'the {role} "{kind}" needs the option "{name}"'
    return f'the {role} "{kind}": {f"{name}: " if name else ""}{first["msg"].removeprefix("Value error, ")}'


def maker_of(role: str, kind: str) -> Callable[..., nn.Module]:
    """What makes a kind, imported if need be."""
    maker = kinds(role)[kind]
    if isinstance(maker, str):
        module, _, name = maker.partition(":")
        found: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
        return found
    return maker


def _of(role: str) -> pydantic.BeforeValidator:
    return pydantic.BeforeValidator(functools.partial(read, role))


EmbeddingPart = Annotated[Part, _of("embedding")]
PositionsPart = Annotated[Part, _of("positions")]
AttentionPart = Annotated[Part, _of("attention")]
FfnPart = Annotated[Part, _of("ffn")]
NormPart = Annotated[Part, _of("norm")]
HeadPart = Annotated[Part, _of("head")]
Whole = Annotated[int, pydantic.Field(ge=1)]
"""A size."""
