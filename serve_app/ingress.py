"""HTTP: routes, parameters, answers and errors of the native API. One handler renders every error."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any, Protocol

import orjson
from starlette.applications import Starlette
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serve_app.bodies import read_upload
from serve_app.errors import (
    BadParameter,
    MethodNotAllowed,
    NotReady,
    RequestError,
    ServeError,
    UnknownModel,
    UnknownRoute,
)
from serve_app.manifest import Manifest
from serve_app.pipeline import Classified, Outcome, Pipeline
from serve_app.types import Priority

logger = logging.getLogger(__name__)
TIMEOUT_HEADER = "x-request-timeout-ms"
PRIORITY_HEADER = "x-priority"
RETRY_HEADER = "x-retry-attempt"
PREDICT_PATH = "/predict"
DEFAULT_TOP_K = 3
_NO_QUERY = QueryParams()


class Service(Protocol):
    """What the routes need of the replica they run in."""

    pipeline: Pipeline

    async def ready(self) -> bool:
        """Whether every engine behind this replica is loaded and warmed."""
        ...

    def describe(self) -> dict[str, Any]:
        """Settings a client may want to know of the model, JSON-ready."""
        ...


class JSON(Response):
    """Encoded once, by orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class App:
    """The ASGI application of one replica: pictures take the short way, everything else goes through Starlette.

    `routes` and `router` are for Serve, which names requests in its metrics by them.
    """

    def __init__(self, service: Service) -> None:
        self._predict = _Predict(service)
        self._rest = _starlette(service, self._predict)
        self.routes, self.router = self._rest.routes, self._rest.router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and scope["path"].removeprefix(scope.get("root_path", "")) == PREDICT_PATH
        ):
            await self._predict(scope, receive, send)
        else:
            await self._rest(scope, receive, send)


def create_app(service: Service) -> App:
    """The ASGI application of one replica."""
    return App(service)


def _starlette(service: Service, predict: _Predict) -> Starlette:
    routes = _Routes(service)
    return Starlette(
        routes=[
            Route(PREDICT_PATH, predict, methods=["POST"]),  # for its name and its 405
            Route("/models", routes.models, methods=["GET"]),
            Route("/healthz", routes.healthz, methods=["GET"]),
            Route("/readyz", routes.readyz, methods=["GET"]),
            Route("/", routes.page, methods=["GET"]),
        ],
        exception_handlers={
            ServeError: _on_serve_error,
            HTTPException: _on_http_exception,
            Exception: _on_fault,
        },
    )


class _Predict:
    """`POST /predict` as an ASGI application of its own.

    Starlette's routing, request object and middleware are a fifth of what HTTP costs per picture here.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer, status, headers = await self._answer(scope, receive), 200, {}
        except ServeError as error:
            answer, status, headers = error.body(), error.status, error.headers()
        except ClientDisconnect:
            return  # nobody reads an answer
        except Exception as error:
            fault = _fault(error)
            answer, status, headers = fault.body(), fault.status, {}
        body = orjson.dumps(answer)
        fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        raw = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        pipeline = self._service.pipeline
        manifest = pipeline.manifest
        headers = Headers(scope=scope)
        query = QueryParams(scope["query_string"]) if scope["query_string"] else _NO_QUERY
        _check_model(query.get("model"), manifest)
        k = _whole_number(query.get("top_k"), "top_k") or min(DEFAULT_TOP_K, manifest.num_classes)
        deadline_s = pipeline.deadline_s(_whole_number(headers.get(TIMEOUT_HEADER), TIMEOUT_HEADER))
        priority = _priority(headers.get(PRIORITY_HEADER))
        retry = _whole_number(headers.get(RETRY_HEADER), RETRY_HEADER) is not None
        pipeline.admission.check_wait(priority, retry=retry)  # a flood is refused without reading its pictures
        with pipeline.admission.ticket(priority, retry=retry) as ticket:
            upload = await read_upload(headers, _pieces(receive), pipeline.settings.limits, ticket)
            outcomes = await pipeline.classify(upload.bodies, k, deadline_s, ticket)
            about = _about(manifest)
            if upload.many:
                return about | {"results": [_result(outcome) for outcome in outcomes]}
            if isinstance(outcomes[0], ServeError):
                raise outcomes[0]
            return about | _result(outcomes[0])


async def _pieces(receive: Receive) -> AsyncIterator[bytes]:
    """A request's body as it arrives."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


class _Routes:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._page = resources.files("serve_app.web").joinpath("index.html").read_text(encoding="utf-8")
        self._page_headers = {"cache-control": "no-cache", "content-security-policy": _page_policy(self._page)}

    async def models(self, request: Request) -> Response:
        return JSON({"models": [self._service.describe()]})

    async def healthz(self, request: Request) -> Response:
        return JSON({"live": True})

    async def readyz(self, request: Request) -> Response:
        if not await self._service.ready():
            raise NotReady("an engine is not loaded yet; try again in a second")
        return JSON({"ready": True})

    async def page(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html", headers=self._page_headers)


def _page_policy(page: str) -> str:
    """A Content-Security-Policy under which exactly this page's own script and style run, and talk to us only."""
    hashes = {}
    for tag in ("script", "style"):
        [text] = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes[tag] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _about(manifest: Manifest) -> dict[str, Any]:
    return {"model": manifest.model, "trained": manifest.trained}


def _result(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, ServeError):
        return outcome.body()
    return _answer(outcome)


def _answer(classified: Classified) -> dict[str, Any]:
    timing = classified.timing
    return {
        "predictions": [
            {"class_id": one.class_id, "label": one.label, "score": round(one.score, 6)}
            for one in classified.predictions
        ],
        "timing_ms": {
            "queue": round(timing.queue, 3),
            "preprocess": round(timing.preprocess, 3),
            "inference": round(timing.inference, 3),
        },
    }


def _check_model(name: str | None, manifest: Manifest) -> None:
    if name is not None and name != manifest.model:
        raise UnknownModel(f"no model {name!r} here; served: {manifest.model}")


def _whole_number(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 9 and int(text) > 0):
        raise BadParameter(f"{name} must be a whole number above 0, not {text[:40]!r}")
    return int(text)


def _priority(text: str | None) -> Priority:
    if text is None or text == "interactive":
        return "interactive"
    if text == "batch":
        return "batch"
    raise BadParameter(f"{PRIORITY_HEADER} must be interactive or batch, not {text[:40]!r}")


def _render(error: ServeError) -> Response:
    return JSON(error.body(), status_code=error.status, headers=error.headers())


async def _on_serve_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    return _render(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such route, wrong method."""
    assert isinstance(error, HTTPException)
    if error.status_code == MethodNotAllowed.status:
        answer = _render(MethodNotAllowed(f"{request.method} is not allowed for {request.url.path}"))
        answer.headers.update(error.headers or {})
        return answer
    if error.status_code == UnknownRoute.status:
        return _render(UnknownRoute(f"nothing at {request.url.path}; POST pictures to /predict"))
    return _render(RequestError(str(error.detail)))


async def _on_fault(request: Request, error: Exception) -> Response:
    return _render(_fault(error))


def _fault(error: Exception) -> ServeError:
    logger.error("a request failed by a fault of the service", exc_info=error)
    return ServeError("an error inside the service; the operator's log says more")
