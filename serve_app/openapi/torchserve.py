"""TorchServe's inference API: https://docs.pytorch.org/serve/inference_api.html."""

from __future__ import annotations

from serve_app.api import PRIORITY, RETRY_ATTEMPT, TIMEOUT_MS
from serve_app.api.answers import Schema
from serve_app.errors import InvalidRequest, NotReady, ServeError, UnknownModel
from serve_app.openapi.parts import (
    BINARY,
    FILE,
    JSON_TYPE,
    PICTURE_ERRORS,
    WORK_ERRORS,
    Errors,
    Json,
    Served,
    answer,
    content,
    operation,
    parameter,
    path_parameter,
    reference,
    refusals,
    schemas,
)

TORCHSERVE = "TorchServe"
TAG: Json = {"name": TORCHSERVE, "description": "What clients of TorchServe call, so that they work unchanged."}


class TorchServeError(Schema):
    """Every error of TorchServe's routes."""

    code: int
    """The status."""
    type: str
    message: str
    """For people; says what to do."""


class TorchServeHealth(Schema):
    """Every engine is warm."""

    status: str


def torchserve_schemas() -> Json:
    """Components that `torchserve_paths` refers to."""
    return schemas([TorchServeError, TorchServeHealth])


def torchserve_paths(served: Served) -> Json:
    """TorchServe's paths; `PUT` is what its examples, `curl -T`, send."""
    model = path_parameter("model", "Name of a model.", {"type": "string"}, served.models[0])
    version = path_parameter("version", "Of its engine, like `1` or `1.0`.", {"type": "string"}, "1.0")
    ping = answer("Every engine is warm.", content(JSON_TYPE, reference(TorchServeHealth), ok={"status": "Healthy"}))
    return {
        "/predictions/{model}": {
            "post": _predictions("torchserve_post", [model], served),
            "put": _predictions("torchserve_put", [model], served),
        },
        "/predictions/{model}/{version}": {
            "post": _predictions("torchserve_post_version", [model, version], served),
            "put": _predictions("torchserve_put_version", [model, version], served),
        },
        "/ping": {"get": operation(TORCHSERVE, "ping", "Whether every engine is warm", _answers(ping, (NotReady,)))},
    }


def _answers(good: Json, errors: Errors) -> Json:
    return {"200": good} | refusals((*errors, ServeError), reference(TorchServeError), _error)


def _error(error: type[ServeError], message: str) -> Json:
    return {"code": error.status.value, "type": error.__name__, "message": message}


def _predictions(name: str, names: list[Json], served: Served) -> Json:
    scores = {
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
        "minProperties": 1,
    }
    example = {"tiger cat": 0.612804, "tabby": 0.201339, "Egyptian cat": 0.103921, "lynx": 0.04, "tiger": 0.01}
    form = {"type": "object", "required": ["data"], "properties": {"data": FILE}}
    errors: Errors = (InvalidRequest, UnknownModel, *PICTURE_ERRORS, *WORK_ERRORS)
    return operation(
        TORCHSERVE,
        name,
        "Classify one picture",
        _answers(answer("Label -> score, the five best.", content(JSON_TYPE, scores, example=example)), errors),
        parameters=[
            *names,
            parameter(TIMEOUT_MS, served, served.limits.max_timeout_ms),
            parameter(PRIORITY, served),
            parameter(RETRY_ATTEMPT, served),
        ],
        requestBody={
            "required": True,
            "content": {
                **content("image/*", FILE),
                **content(BINARY, FILE),
                "multipart/form-data": {"schema": form, "encoding": {"data": {"contentType": f"image/*, {BINARY}"}}},
            },
        },
    )
