"""HTTP: routes, parameters, answers and errors of the native API. One handler renders every error."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from dataclasses import asdict
from importlib import resources
from typing import Any, Protocol

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.admission import Ticket
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

logger = logging.getLogger(__name__)
TIMEOUT_HEADER = "x-request-timeout-ms"
DEFAULT_TOP_K = 3


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


def create_app(service: Service) -> Starlette:
    """The ASGI application of one replica."""
    routes = _Routes(service)
    return Starlette(
        routes=[
            Route("/predict", routes.predict, methods=["POST"]),
            Route("/models", routes.models, methods=["GET"]),
            Route("/healthz", routes.healthz, methods=["GET"]),
            Route("/readyz", routes.readyz, methods=["GET"]),
            Route("/", routes.page, methods=["GET"]),
        ],
        exception_handlers={
            ServeError: _on_serve_error,
            HTTPException: _on_http_exception,
            ClientDisconnect: _on_disconnect,
            Exception: _on_fault,
        },
    )


class _Routes:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._page = resources.files("serve_app.web").joinpath("index.html").read_text(encoding="utf-8")
        self._page_headers = {"cache-control": "no-cache", "content-security-policy": _page_policy(self._page)}

    async def predict(self, request: Request) -> Response:
        pipeline = self._service.pipeline
        manifest = pipeline.manifest
        _check_model(request.query_params.get("model"), manifest)
        k = _whole_number(request.query_params.get("top_k"), "top_k") or min(DEFAULT_TOP_K, manifest.num_classes)
        deadline_s = pipeline.deadline_s(_whole_number(request.headers.get(TIMEOUT_HEADER), TIMEOUT_HEADER))
        with pipeline.admission.ticket() as ticket:
            return await self._predict(request, ticket, k, deadline_s)

    async def _predict(self, request: Request, ticket: Ticket, k: int, deadline_s: float) -> Response:
        pipeline = self._service.pipeline
        upload = await read_upload(request.headers, request.stream(), pipeline.settings.limits, ticket)
        outcomes = await pipeline.classify(upload.bodies, k, deadline_s, ticket)
        about = _about(pipeline.manifest)
        if upload.many:
            return JSON(about | {"results": [_result(outcome) for outcome in outcomes]})
        if isinstance(outcomes[0], ServeError):
            raise outcomes[0]
        return JSON(about | _result(outcomes[0]))

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
    timing = asdict(classified.timing)
    return {
        "predictions": [
            {"class_id": one.class_id, "label": one.label, "score": round(one.score, 6)}
            for one in classified.predictions
        ],
        "timing_ms": {stage: round(value, 3) for stage, value in timing.items()},
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


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the status is for the log


async def _on_fault(request: Request, error: Exception) -> Response:
    logger.error("a request failed by a fault of the service", exc_info=error)
    return _render(ServeError("an error inside the service; the operator's log says more"))
