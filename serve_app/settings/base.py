"""What all settings share: frozen sections without unknown keys, and errors that name the nearest valid one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.errors import ConfigError

Auto = Literal["auto"]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


AnySection = TypeVar("AnySection", bound=Section)


def parse(model: type[AnySection], values: Mapping[str, Any], root: str) -> AnySection:
    """Validates `values`.

    Raises:
        ConfigError: one line per problem, each with its key's path below `root`.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = [
            _describe(model, root, problem["type"], problem["loc"], problem["msg"]) for problem in error.errors()
        ]
        raise ConfigError("\n".join(problems)) from None


def nearest_key(key: str, valid: list[str]) -> str:
    """`; did you mean ...?`, or the list of valid keys where none is near."""
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(valid))}"


def _describe(model: type[BaseModel], root: str, kind: str, location: tuple[int | str, ...], message: str) -> str:
    path = ".".join([root, *(str(part) for part in location)])
    if kind == "extra_forbidden":
        return f"{path}: unknown key; {nearest_key(str(location[-1]), _keys_at(model, location[:-1]))}"
    return f"{path}: {message.removeprefix('Value error, ')}"


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    parts = iter(location)
    for part in parts:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = model_in(annotation)
        if inner is None:
            return []
        if _is_mapping(annotation):
            next(parts, None)  # the user's own name
        model = inner
    return list(model.model_fields)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model of a section, or of the items of a list or mapping of sections."""
    candidates = [annotation, *get_args(annotation)]
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _is_mapping(annotation: Any) -> bool:
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)
