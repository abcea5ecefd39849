"""`POST /predict`: the native API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.datastructures import Headers, QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serve_app import request_log
from serve_app.api.parameters import DEFAULT_TOP_K, MODEL, PRIORITY, RETRY_ATTEMPT, TIMEOUT_MS, TOP_K
from serve_app.bodies import read_upload
from serve_app.errors import ServeError
from serve_app.ingress.answers import Answer, respond
from serve_app.ingress.service import Service
from serve_app.manifest import Manifest
from serve_app.pipeline import Classified, Outcome, Pipeline

PREDICT_PATH = "/predict"
_NO_QUERY = QueryParams()


class Predict:
    """An ASGI application of its own.

    Starlette's routing, request object and middleware are a fifth of what HTTP costs per picture here.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, self._answer(scope, receive), _refusal)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        headers = Headers(scope=scope)
        query = QueryParams(scope["query_string"]) if scope["query_string"] else _NO_QUERY
        pipeline: Pipeline = MODEL.choose(query.get(MODEL.name), self._service.models)
        request_log.of_model(pipeline.name)
        k = TOP_K.parse(query.get(TOP_K.name)) or min(DEFAULT_TOP_K, pipeline.manifest.num_classes)
        deadline_s = pipeline.deadline_s(TIMEOUT_MS.parse(headers.get(TIMEOUT_MS.name)))
        priority = PRIORITY.parse(headers.get(PRIORITY.name))
        retry = RETRY_ATTEMPT.parse(headers.get(RETRY_ATTEMPT.name)) is not None
        pipeline.admission.check_wait(priority, retry=retry)  # a flood is refused without reading its pictures
        with pipeline.admission.ticket(priority, retry=retry) as ticket:
            upload = await read_upload(headers, pieces(receive), pipeline.settings.limits, ticket)
            outcomes = await pipeline.classify(upload.bodies, k, deadline_s, ticket)
            if not upload.many and isinstance(outcomes[0], ServeError):
                raise outcomes[0]
            about = _about(pipeline.name, _answering(outcomes, pipeline.manifest))
            if upload.many:
                return _json(about | {"results": [_result(outcome, k) for outcome in outcomes]})
            return _json(about | _result(outcomes[0], k))


async def pieces(receive: Receive) -> AsyncIterator[bytes]:
    """A request's body as it arrives."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _json(content: dict[str, Any]) -> Answer:
    return Answer(orjson.dumps(content))


def _refusal(error: ServeError) -> Answer:
    return Answer(orjson.dumps(error.body()), headers=error.headers(), status=error.status)


def _answering(outcomes: list[Outcome], manifest: Manifest) -> Manifest:
    """Of the engine that answered; where none did, of the one that would have."""
    return next((one.manifest for one in outcomes if isinstance(one, Classified)), manifest)


def _about(name: str, manifest: Manifest) -> dict[str, Any]:
    return {"model": name, "version": manifest.version, "trained": manifest.trained}


def _result(outcome: Outcome, k: int) -> dict[str, Any]:
    if isinstance(outcome, ServeError):
        return outcome.body()
    timing = outcome.timing
    return {
        "predictions": [
            {"class_id": one.class_id, "label": one.label, "score": round(one.score, 6)}
            for one in outcome.predictions(k)
        ],
        "timing_ms": {
            "queue": round(timing.queue, 3),
            "preprocess": round(timing.preprocess, 3),
            "inference": round(timing.inference, 3),
        },
    }
