"""The Open Inference Protocol, version 2, over REST: https://github.com/kserve/open-inference-protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from serve_app.api import RETRY_ATTEMPT
from serve_app.errors import (
    BadParameter,
    InvalidRequest,
    NotReady,
    PayloadTooLarge,
    ServeError,
    UnknownModel,
    Unsupported,
)
from serve_app.oip.http_codec import HEADER_LENGTH
from serve_app.oip.metadata import IMAGE, LOG_SETTINGS, SCORES, TRACE_SETTINGS, server_metadata
from serve_app.oip.refusals import STATUSES
from serve_app.oip.values import BYTES
from serve_app.openapi import v2_bodies as bodies
from serve_app.openapi.parts import (
    BINARY,
    CURL_HEADERS,
    FILE,
    JSON_TYPE,
    PICTURE,
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

PROTOCOL = "Open Inference Protocol"
TAG: Json = {
    "name": PROTOCOL,
    "description": "What clients of Triton and KServe speak, here over REST. Each model has two names: `NAME` takes "
    "picture files (BYTES), `NAME_tensor` what a client made of them (FP32). Status 200 is success, every other one "
    "has the reason in `error`.",
}
_NOTHING: Errors = ()


def v2_schemas() -> Json:
    """Components that `v2_paths` refers to."""
    return schemas(bodies.MODELS)


def v2_paths(served: Served) -> Json:
    """Every path below /v2."""
    paths: Json = {}
    for path, method, one in _operations(served):
        paths.setdefault(path, {})[method] = one
    return paths


def status_of(error: type[ServeError]) -> HTTPStatus:
    """Of an error on the protocol's routes."""
    return error.status if error.status in STATUSES else HTTPStatus.BAD_REQUEST


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of the protocol.

    Attributes:
        path: what stands in `[]` may be left out.
        answers: with status 200; empty where that never comes.
        errors: beside a fault of the service.
        parts: description, parameters beside those of the path, body.
    """

    path: str
    name: str
    summary: str
    answers: Json
    errors: Errors = _NOTHING
    method: str = "get"
    parts: Json | None = None


def _operations(served: Served) -> Iterator[tuple[str, str, Json]]:
    for call in (*_of_models(served), *_of_server(served)):
        parameters = (call.parts or {}).get("parameters", [])
        for path, suffix in _spelled(call.path):
            names = [_PATH[name](served) for name in _PATH if "{" + name + "}" in path]
            parts = {**(call.parts or {}), "parameters": names + parameters}
            yield path, call.method, _operation(call, call.name + suffix, parts)


def _spelled(path: str) -> Iterator[tuple[str, str]]:
    """A path with what may be left out in it, in `[]`, and without; and what the operation's name then ends with."""
    before, bracket, rest = path.partition("[")
    if not bracket:
        yield path, ""
        return
    inner, _, after = rest.partition("]")
    yield before + after, ""
    yield before + inner + after, "_" + inner.strip("/").partition("/")[0].removesuffix("s")


def _operation(call: _Call, name: str, parts: Json) -> Json:
    refused = refusals((*call.errors, ServeError), reference(bodies.ProtocolError), _error, status_of)
    good = {"200": call.answers} if call.answers else {}
    return operation(PROTOCOL, "v2_" + name, call.summary, good | refused, **parts)


def _error(error: type[ServeError], message: str) -> Json:
    return {"error": message}


_VERSION: Json = {"type": "string", "pattern": "^[0-9]+$"}
_PATH = {
    "model": lambda served: path_parameter("model", "Name of a model.", _TEXT, served.models[0]),
    "version": lambda served: path_parameter("version", "Of its engine.", _VERSION, "1"),
    "region": lambda served: path_parameter("region", "Of shared memory.", _TEXT, "region"),
}
_TEXT: Json = {"type": "string"}


def _of_models(served: Served) -> Iterator[_Call]:
    model = "/v2/models/{model}[/versions/{version}]"
    yield _infer(model, served)
    yield _Call(model, "metadata", "What a model takes and gives", _good(bodies.ModelMetadata), (UnknownModel,))
    config = _good(bodies.ModelConfig)
    yield _Call(model + "/config", "config", "A model's configuration, as Triton has them", config, (UnknownModel,))
    ready = _good(bodies.ModelReady, {"name": served.models[0], "ready": True})
    yield _Call(model + "/ready", "model_ready", "Whether a model is warm", ready, (UnknownModel, NotReady))
    yield _Call(model + "/stats", "model_stats", "What was counted of a model", _statistics(), (UnknownModel,))
    yield _Call("/v2/models/stats", "stats", "What was counted of all models", _statistics())


def _of_server(served: Served) -> Iterator[_Call]:
    metadata = _good(bodies.ServerMetadata, server_metadata())
    yield _Call("/v2", "server", "What this server is", metadata)
    live, ready = _good(bodies.ServerLive, {"live": True}), _good(bodies.ServerReady, {"ready": True})
    yield _Call("/v2/health/live", "live", "Whether the process answers", live)
    yield _Call("/v2/health/ready", "ready", "Whether every engine is warm", ready, (NotReady,))
    yield _index(served)
    for verb in ("load", "unload"):
        path = "/v2/repository/models/{model}/" + verb
        yield _refused(path, verb, "Models are configured: this is always refused")
    trace = _good(bodies.TraceSettings, TRACE_SETTINGS)
    for path, name, errors in (("/v2", "", ()), ("/v2/models/{model}", "model_", (UnknownModel,))):
        yield _Call(path + "/trace/setting", name + "trace", "Settings of Triton's tracing", trace, errors)
        yield _refused(path + "/trace/setting", name + "trace_change", "Change them: this is always refused")
    yield _Call("/v2/logging", "logging", "Settings of logs", _good(bodies.LogSettings, LOG_SETTINGS))
    yield _refused("/v2/logging", "logging_change", "Change them: this is always refused")
    for kind in ("system", "cuda"):
        yield from _shared_memory(kind)


def _shared_memory(kind: str) -> Iterator[_Call]:
    path = f"/v2/{kind}sharedmemory[/region/{{region}}]"
    none = answer("None.", content(JSON_TYPE, {"type": "array", "maxItems": 0}, none=[]))
    yield _Call(path + "/status", f"{kind}_regions", "Regions of shared memory: there are none", none)
    for verb in ("register", "unregister"):
        yield _refused(f"{path}/{verb}", f"{kind}_{verb}", "Shared memory is not supported: this is always refused")


def _good(model: type[Any], example: Any = None) -> Json:
    examples = {} if example is None else {"example": model.model_validate(example).model_dump()}
    return answer(str(model.__doc__), content(JSON_TYPE, reference(model), **examples))


def _statistics() -> Json:
    return _good(bodies.Statistics)


def _refused(path: str, name: str, summary: str) -> _Call:
    body = {"content": content(JSON_TYPE, {}, any={})}
    return _Call(path, name, summary, {}, (Unsupported,), "post", {"requestBody": body})


def _index(served: Served) -> _Call:
    models = [
        {"name": name, "version": "1", "state": "READY", "reason": ""}
        for model in served.models
        for name in (model, f"{model}_tensor")
    ]
    schema = {"type": "array", "items": reference(bodies.RepositoryModel)}
    good = answer("Every model under each of its names.", content(JSON_TYPE, schema, example=models))
    body = {"content": content(JSON_TYPE, reference(bodies.RepositoryQuery), ready={"ready": True})}
    errors = (InvalidRequest, PayloadTooLarge)
    return _Call("/v2/repository/index", "index", "Which models there are", good, errors, "post", {"requestBody": body})


def _infer(model: str, served: Served) -> _Call:
    good = answer(
        "The scores, or the best classes.",
        {**content(JSON_TYPE, reference(bodies.InferResponse), classes=_classes(served)), **content(BINARY, FILE)},
        {HEADER_LENGTH: _LENGTH_HEADER},
    )
    errors: Errors = (InvalidRequest, UnknownModel, *PICTURE_ERRORS, BadParameter, Unsupported, *WORK_ERRORS)
    parts = {
        "description": "In JSON, files are base64 strings. As bytes, tensors follow the JSON in the order of the "
        f"inputs, and `{HEADER_LENGTH}` says how long the JSON is; where it is 0, the body is one file.",
        "parameters": [
            {"name": HEADER_LENGTH, "in": "header", "required": False, **_LENGTH_HEADER},
            {
                "name": "content-encoding",
                "in": "header",
                "required": False,
                "description": "How the body is compressed.",
                "schema": {"type": "string", "enum": ["identity", "gzip", "deflate"], "default": "identity"},
                "example": "identity",
            },
            {
                "name": "accept-encoding",
                "in": "header",
                "required": False,
                "description": "`gzip` or `deflate` to have the answer compressed.",
                "schema": {"type": "string"},
                "example": "gzip",
            },
            parameter(RETRY_ATTEMPT, served),
        ],
        "requestBody": {
            "required": True,
            "content": {
                **content(JSON_TYPE, reference(bodies.InferRequest), classes=_INFER, scores=_SCORES),
                BINARY: {"schema": FILE, CURL_HEADERS: {HEADER_LENGTH: "0"}},
            },
        },
    }
    return _Call(model + "/infer", "infer", "Classify pictures or tensors", good, errors, "post", parts)


_LENGTH_HEADER: Json = {
    "description": "Bytes of JSON before the tensors.",
    "schema": {"type": "integer", "minimum": 0},
}
_INPUT: Json = {
    "name": IMAGE,
    "datatype": BYTES,
    "shape": [1, 1],
    "parameters": {"content_type": "base64"},
    "data": [PICTURE],
}
_INFER: Json = {"inputs": [_INPUT], "outputs": [{"name": SCORES, "parameters": {"classification": 3}}]}
_SCORES: Json = {"id": "1", "inputs": [_INPUT], "parameters": {"priority": 2, "timeout": 5_000_000}}


def _classes(served: Served) -> Json:
    output = {"name": SCORES, "datatype": BYTES, "shape": [1, 3]}
    data = ["0.612804:282:tiger cat", "0.201339:281:tabby", "0.103921:285:Egyptian cat"]
    return {"model_name": served.models[0], "model_version": "1", "outputs": [{**output, "data": data}]}
