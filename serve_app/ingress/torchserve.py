"""TorchServe's inference API, for its clients: https://pytorch.org/serve/inference_api.html"""

from __future__ import annotations

import re
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from serve_app import request_log
from serve_app.api.parameters import PRIORITY, RETRY_ATTEMPT, TIMEOUT_MS
from serve_app.bodies import MULTIPART, form_files, media_type, read_body
from serve_app.errors import (
    InvalidRequest,
    MethodNotAllowed,
    NotReady,
    ServeError,
    UnknownModel,
    UnknownRoute,
)
from serve_app.ingress.answers import Answer, respond
from serve_app.ingress.predict import pieces
from serve_app.ingress.service import Service
from serve_app.pipeline import Pipeline

PREDICTIONS, PING = "/predictions", "/ping"
FIELDS = ("data", "body")
"""Of a multipart form: those that TorchServe's handlers look for."""
TOP_K = 5
"""As its image_classifier answers."""
_ROUTE = re.compile(PREDICTIONS + r"/(?P<model>[^/]+)(?:/(?P<version>[^/]+))?")
_TYPES = {
    400: "BadRequestException",
    404: "ResourceNotFoundException",
    405: "MethodNotAllowedException",
    413: "RequestEntityTooLargeException",
    429: "TooManyRequestsException",
    503: "ServiceUnavailableException",
    504: "RequestTimeoutException",
}


class TorchServe:
    """An ASGI application for paths that begin with `PREDICTIONS`, and for `PING`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, self._answer(scope, receive), _refusal)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path, method = scope["path"].removeprefix(scope.get("root_path", "")), scope["method"]
        if path == PING:
            _check_method(method, path, "GET")
            return Answer(orjson.dumps(await self._ping()))
        found = _ROUTE.fullmatch(path)
        if found is None:
            raise UnknownRoute(f"nothing at {path[:200]}; POST pictures to {PREDICTIONS}/NAME")
        _check_method(method, path, "POST", "PUT")  # curl -T, in all of TorchServe's examples, is PUT
        pipeline = self._find(**found.groupdict())
        request_log.of_model(pipeline.name)
        return Answer(orjson.dumps(await self._predict(pipeline, Headers(scope=scope), receive)))

    async def _ping(self) -> dict[str, Any]:
        if not await self._service.ready():
            raise NotReady("an engine is not loaded yet; try again in a second")
        return {"status": "Healthy"}

    def _find(self, model: str, version: str | None) -> Pipeline:
        pipeline = self._service.models.get(model)
        if pipeline is None:
            raise UnknownModel(f"no model {model[:80]!r} here; served: {', '.join(self._service.models)}")
        served = pipeline.manifest.version
        if version not in (None, str(served), f"{served}.0"):
            raise UnknownModel(f"model {model!r} has no version {version[:20]!r}; version {served} is served")
        return pipeline

    async def _predict(self, pipeline: Pipeline, headers: Headers, receive: Receive) -> dict[str, float]:
        deadline_s = pipeline.deadline_s(TIMEOUT_MS.parse(headers.get(TIMEOUT_MS.name)))
        priority = PRIORITY.parse(headers.get(PRIORITY.name))
        retry = RETRY_ATTEMPT.parse(headers.get(RETRY_ATTEMPT.name)) is not None
        k = min(TOP_K, pipeline.manifest.num_classes)
        pipeline.admission.check_wait(priority, retry=retry)  # a flood is refused without reading its pictures
        with pipeline.admission.ticket(priority, retry=retry) as ticket:
            body = await read_body(headers, pieces(receive), pipeline.settings.limits.max_body_bytes, ticket)
            picture = _picture(headers, body)
            if picture is not body:
                ticket.add_bytes(len(picture))
            [outcome] = await pipeline.classify([picture], k, deadline_s, ticket)
        if isinstance(outcome, ServeError):
            raise outcome
        best_last = reversed(outcome.predictions(k))  # of two classes with one label, the better one counts
        scores = {one.label: one.score for one in best_last}
        return dict(sorted(scores.items(), key=lambda item: -item[1]))


def _picture(headers: Headers, body: bytes) -> bytes:
    """The file: the body, or the one in its form."""
    if media_type(headers) != MULTIPART:
        if not body:
            raise InvalidRequest("the body is empty; send a picture file (curl -T photo.jpg)")
        return body
    files = form_files(headers, body, len(FIELDS), FIELDS)
    if len(files) > 1:
        raise InvalidRequest("several files in one request; send one each, or all of them to /predict")
    return files[0]


def _check_method(method: str, path: str, *allowed: str) -> None:
    if method not in allowed:
        raise MethodNotAllowed(f"{method} is not allowed for {path[:200]}; use {' or '.join(allowed)}", allowed)


def _refusal(error: ServeError) -> Answer:
    kind = "ModelNotFoundException" if isinstance(error, UnknownModel) else _type_of(int(error.status))
    body = {"code": int(error.status), "type": kind, "message": str(error)}
    return Answer(orjson.dumps(body), headers=error.headers(), status=error.status)


def _type_of(status: int) -> str:
    return _TYPES.get(status, "BadRequestException" if status < 500 else "InternalServerException")
