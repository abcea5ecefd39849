"""The Open Inference Protocol over REST: every path under /v2, as Triton's HTTP clients call it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from serve_app.api.parameters import RETRY_ATTEMPT
from serve_app.bodies import read_body
from serve_app.errors import InvalidRequest, MethodNotAllowed, NotReady, PayloadTooLarge, ServeError, UnknownRoute
from serve_app.ingress.answers import Answer, respond
from serve_app.ingress.predict import pieces
from serve_app.ingress.service import Service
from serve_app.oip.http_codec import (
    HEADER_LENGTH,
    Encoding,
    Inflater,
    accepted_encoding,
    compressed,
    content_encoding,
    decode_request,
    encode_response,
    json_length,
    raw_request,
)
from serve_app.oip.metadata import (
    LOG_SETTINGS,
    TRACE_SETTINGS,
    Published,
    model_config,
    model_metadata,
    repository_index,
    server_metadata,
)
from serve_app.oip.refusals import STATUSES, models_are_configured, no_shared_memory, settings_are_configured
from serve_app.oip.statistics import statistics
from serve_app.oip.values import InferRequest
from serve_app.v2 import admit, all_published, find, infer

PREFIX = "/v2"
MAX_SMALL_BODY_BYTES = 64 * 1024
"""Of requests that carry no tensors."""
_BINARY = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Call:
    """A request that found its route; `groups` are of the route's pattern."""

    groups: Mapping[str, str]
    headers: Headers
    receive: Receive


Handler: TypeAlias = Callable[[Call], Awaitable[Answer]]


class V2:
    """An ASGI application for paths that begin with `PREFIX`. No Content-Type is asked for: clients send none."""

    def __init__(self, service: Service) -> None:
        self._service = service
        model = r"/models/(?P<model>[^/]+)"
        version = r"(?:/versions/(?P<version>[0-9]+))?"
        region = r"(?:/region/[^/]+)?"
        table: list[tuple[str, dict[str, Handler]]] = [
            (model + version + "/infer", {"POST": self._infer}),
            ("", {"GET": self._server}),
            ("/health/live", {"GET": self._live}),
            ("/health/ready", {"GET": self._ready}),
            ("/models/stats", {"GET": self._statistics}),
            (model + version, {"GET": self._metadata}),
            (model + version + "/config", {"GET": self._config}),
            (model + version + "/ready", {"GET": self._model_ready}),
            (model + version + "/stats", {"GET": self._model_statistics}),
            ("/repository/index", {"POST": self._index}),
            (r"/repository/models/[^/]+/(?:load|unload)", {"POST": self._configured}),
            (f"(?:{model})?/trace/setting", {"GET": self._trace, "POST": self._trace_fixed}),
            ("/logging", {"GET": self._logging, "POST": self._logging_fixed}),
            (f"/(?:system|cuda)sharedmemory{region}/status", {"GET": self._regions}),
            (f"/(?:system|cuda)sharedmemory{region}/(?:un)?register", {"POST": self._no_regions}),
        ]
        self._routes = [(re.compile(PREFIX + pattern), methods) for pattern, methods in table]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, self._answer(scope, receive), _refusal)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        for pattern, methods in self._routes:
            if found := pattern.fullmatch(path):
                handler = methods.get(scope["method"])
                if handler is None:
                    message = f"{scope['method']} is not allowed for {path[:200]}; use {' or '.join(methods)}"
                    raise MethodNotAllowed(message, tuple(methods))
                return await handler(Call(found.groupdict(""), Headers(scope=scope), receive))
        raise UnknownRoute(f"nothing at {path[:200]}; GET {PREFIX} and {PREFIX}/models/NAME say what there is")

    def _found(self, call: Call) -> Published:
        return find(self._service.models, call.groups["model"], call.groups.get("version", ""))[0]

    async def _infer(self, call: Call) -> Answer:
        models, name, version = self._service.models, call.groups["model"], call.groups["version"]
        encoding = content_encoding(call.headers.get("content-encoding"))
        retry = RETRY_ATTEMPT.parse(call.headers.get(RETRY_ATTEMPT.name)) is not None
        with admit(models, name, version, retry=retry) as ticket:  # a flood is refused without reading its pictures
            model, pipeline = find(models, name, version)
            stream = _inflated(pieces(call.receive), encoding)
            body = await read_body(call.headers, stream, pipeline.settings.limits.max_body_bytes, ticket)
            request = _decoded(model, version, call.headers, body)
            ticket.add_bytes(_copied_bytes(request, body))
            response = await infer(models, request, ticket)
        encoded = encode_response(response, request)
        accepted = accepted_encoding(call.headers.get("accept-encoding"))
        headers = {} if accepted == "identity" else {"content-encoding": accepted}
        answer = compressed(encoded.body, accepted)
        if encoded.json_bytes is None:
            return Answer(answer, headers=headers)
        return Answer(answer, _BINARY, headers | {HEADER_LENGTH: str(encoded.json_bytes)})

    async def _server(self, call: Call) -> Answer:
        return _json(server_metadata())

    async def _live(self, call: Call) -> Answer:
        return _json({"live": True})

    async def _ready(self, call: Call) -> Answer:
        if not await self._service.ready():
            raise NotReady("an engine is not loaded yet; try again in a second")
        return _json({"ready": True})

    async def _model_ready(self, call: Call) -> Answer:
        model = self._found(call)
        if not await self._service.ready(model.model):
            raise NotReady(f"the engine of model {model.name!r} is not loaded yet; try again in a second")
        return _json({"name": model.name, "ready": True})

    async def _metadata(self, call: Call) -> Answer:
        return _json(model_metadata(self._found(call)))

    async def _config(self, call: Call) -> Answer:
        return _json(model_config(self._found(call)))

    async def _statistics(self, call: Call) -> Answer:
        return _json(statistics(all_published(self._service.models), await self._service.totals()))

    async def _model_statistics(self, call: Call) -> Answer:
        return _json(statistics([self._found(call)], await self._service.totals()))

    async def _index(self, call: Call) -> Answer:
        ready_only = await _wants_ready_only(call)
        names = list(self._service.models)
        ready = dict(zip(names, await asyncio.gather(*map(self._service.ready, names)), strict=True))
        models = [one for one in all_published(self._service.models) if ready[one.model] or not ready_only]
        return _json(repository_index(models, ready))

    async def _configured(self, call: Call) -> Answer:
        raise models_are_configured()

    async def _trace(self, call: Call) -> Answer:
        if call.groups["model"]:
            self._found(call)
        return _json(TRACE_SETTINGS)

    async def _trace_fixed(self, call: Call) -> Answer:
        raise settings_are_configured("trace")

    async def _logging(self, call: Call) -> Answer:
        return _json(LOG_SETTINGS)

    async def _logging_fixed(self, call: Call) -> Answer:
        raise settings_are_configured("log")

    async def _regions(self, call: Call) -> Answer:
        return _json([])

    async def _no_regions(self, call: Call) -> Answer:
        raise no_shared_memory()


def _json(content: Any) -> Answer:
    return Answer(orjson.dumps(content))


def _refusal(error: ServeError) -> Answer:
    status = error.status if error.status in STATUSES else 400
    return Answer(orjson.dumps({"error": str(error)}), headers=error.headers(), status=status)


async def _inflated(stream: AsyncIterator[bytes], encoding: Encoding) -> AsyncIterator[bytes]:
    """The body in small pieces, whatever they were compressed to: who reads it counts them."""
    if encoding == "identity":
        async for piece in stream:
            yield piece
        return
    inflater = Inflater()
    async for piece in stream:
        for part in inflater.feed(piece):
            yield part
    inflater.finish()


def _decoded(model: Published, version: str, headers: Headers, body: bytes) -> InferRequest:
    json_bytes = json_length(headers.get(HEADER_LENGTH), len(body))
    if json_bytes == 0:
        return raw_request(model.name, version, model.input, body)
    return decode_request(model.name, version, body, json_bytes)


def _copied_bytes(request: InferRequest, body: bytes) -> int:
    """What the request's tensors hold beside the body: files that were cut out of it."""
    return sum(
        len(element)
        for tensor in request.inputs
        if isinstance(tensor.data, list)
        for element in tensor.data
        if element is not body
    )


async def _wants_ready_only(call: Call) -> bool:
    body = bytearray()
    async for piece in pieces(call.receive):
        body += piece
        if len(body) > MAX_SMALL_BODY_BYTES:
            raise PayloadTooLarge(f"the body is larger than {MAX_SMALL_BODY_BYTES} bytes; send {{}}")
    try:
        ready = orjson.loads(body).get("ready", False) if body else False
    except (orjson.JSONDecodeError, AttributeError):
        raise InvalidRequest('the body is not a JSON object; send {"ready": true}, or nothing') from None
    if not isinstance(ready, bool):
        raise InvalidRequest('"ready" must be true or false; send {"ready": true}, or nothing')
    return ready
