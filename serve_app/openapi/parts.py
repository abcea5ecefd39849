"""Pieces of an OpenAPI 3.1 document: operations, bodies, and answers made of the error classes that can occur."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve_app.api import ModelName, Parameter
from serve_app.errors import (
    BadParameter,
    BrokenPicture,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    MethodNotAllowed,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    ServeError,
    UnknownModel,
    UnknownRoute,
    Unsupported,
    UnsupportedFormat,
)
from serve_app.settings import LimitSettings

Json = dict[str, Any]
Errors = tuple[type[ServeError], ...]
HTML, JSON_TYPE, BINARY = "text/html", "application/json", "application/octet-stream"
CURL_HEADERS = "x-curl-headers"
"""Of a body: headers without which it would be taken for another one."""
FILE: Json = {"type": "string", "format": "binary"}
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mOUizrBgA0wMeAAg1MCAP3eAVCoNiQUAAAAAElFTkSuQmCC"
"""A PNG of 8 x 8 pixels, for examples that can be sent as they are."""

MEANING: Mapping[type[ServeError], str] = {
    ServeError: "a fault of the service; the operator's log says more",
    RequestError: "a request that HTTP itself does not allow",
    InvalidRequest: "no picture in the request, or a body that is not what its type says",
    UnknownRoute: "nothing at this path",
    UnknownModel: "no such model, or version of it, is served",
    MethodNotAllowed: "another method is wanted; `Allow` says which",
    PayloadTooLarge: "too many bytes, pixels or pictures",
    UnsupportedFormat: "not a picture format that is served: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF",
    BrokenPicture: "the file is truncated or damaged",
    BadParameter: "a parameter out of its range",
    Overloaded: "too much is waiting; come back after `Retry-After` seconds",
    InferenceFailed: "the engine failed on good input: a fault of the service",
    NotReady: "no warm engine at the moment; try again after `Retry-After` seconds",
    Unsupported: "a part of the protocol that is not served here",
    DeadlineExceeded: "the request's time was up before its answer",
}
"""When each error is answered, in the words of the description."""
PICTURE_ERRORS: Errors = (PayloadTooLarge, UnsupportedFormat, BrokenPicture, BadParameter)
WORK_ERRORS: Errors = (Overloaded, InferenceFailed, NotReady, DeadlineExceeded)
_WAITING = {error for error in MEANING if issubclass(error, Overloaded | NotReady)}


@dataclass(frozen=True, slots=True)
class Served:
    """What a description says of one configuration.

    Attributes:
        models: public names, the default first.
        num_classes: of the model that has most.
        limits: bounds that clients meet.
        root_path: what stands before every path, "" or like `/prefix`.
    """

    models: tuple[str, ...]
    num_classes: int
    limits: LimitSettings
    root_path: str = ""


def reference(model: type[BaseModel] | str) -> Json:
    """Of a schema among the components."""
    name = model if isinstance(model, str) else model.__name__
    return {"$ref": f"#/components/schemas/{name}"}


def schemas(models: Sequence[type[BaseModel]]) -> Json:
    """The components of these models and of those inside them.

    Clients are told nothing of what is not there, so that later versions may add it.
    """
    _, document = models_json_schema(
        [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
    )
    components: Json = _plain(document["$defs"])
    return components


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        dropped = {"title"} if isinstance(value.get("title"), str) else set()
        dropped |= {"additionalProperties"} if value.get("additionalProperties") is False else set()
        return {key: _plain(inner) for key, inner in value.items() if key not in dropped}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def content(kind: str, schema: Json, **examples: Any) -> Json:
    """One media type of a body; `examples` by name."""
    named = {name: {"value": value} for name, value in examples.items()}
    return {kind: {"schema": schema, **({"examples": named} if named else {})}}


def answer(description: str, body: Json | None = None, headers: Json | None = None) -> Json:
    """A response."""
    parts = {"description": description, "content": body, "headers": headers}
    return {name: part for name, part in parts.items() if part is not None}


ErrorBody = Callable[[type[ServeError], str], Any]
"""The body that a family of routes answers an error with: from its class and a message."""


def native_error(error: type[ServeError], message: str) -> Json:
    """The native API's: the exact body that the class makes."""
    return {"error": {"code": error.code, "message": message}}


def refusals(
    errors: Iterable[type[ServeError]],
    schema: Json,
    body: ErrorBody = native_error,
    status_of: Callable[[type[ServeError]], HTTPStatus] = lambda error: error.status,
) -> Json:
    """Responses by status, each with an example per error."""
    by_status: dict[HTTPStatus, list[type[ServeError]]] = {}
    for error in dict.fromkeys(errors):
        by_status.setdefault(status_of(error), []).append(error)
    return {
        str(status.value): answer(
            "; ".join(f"`{one.code}`: {MEANING[one]}" for one in several),
            content(JSON_TYPE, schema, **{one.code: body(one, MEANING[one].replace("`", "")) for one in several}),
            {"Retry-After": RETRY_AFTER} if any(one in _WAITING for one in several) else None,
        )
        for status, several in sorted(by_status.items())
    }


RETRY_AFTER: Json = {
    "description": "Whole seconds to wait before the next attempt.",
    "required": True,
    "schema": {"type": "integer", "minimum": 1},
    "example": 2,
}


def parameter(declared: Parameter, served: Served, maximum: int | None = None) -> Json:
    """A declared parameter, with the bound that the configuration gives it."""
    schema = declared.schema() | ({} if maximum is None else {"maximum": maximum})
    example = served.models[0] if isinstance(declared, ModelName) else declared.example
    return {
        "name": declared.name,
        "in": declared.place,
        "description": declared.description,
        "required": False,
        "schema": schema,
        "example": example,
    }


def path_parameter(name: str, description: str, schema: Json, example: Any) -> Json:
    """A part of a path."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": schema,
        "example": example,
    }


def operation(tag: str, name: str, summary: str, responses: Json, **parts: Any) -> Json:
    """One method of a path; `parts` are `description`, `parameters`, `requestBody`, left out where they are empty."""
    given = {key: part for key, part in parts.items() if part}
    return {"tags": [tag], "operationId": name, "summary": summary, **given, "responses": responses}
