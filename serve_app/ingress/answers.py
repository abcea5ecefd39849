"""How answers and errors are written; one place renders every error of the native API."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from serve_app import request_log
from serve_app.errors import MethodNotAllowed, RequestError, ServeError, UnknownRoute

logger = logging.getLogger(__name__)


class JSON(Response):
    """Encoded once, by orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


async def send_answer(
    send: Send, status: int, body: bytes, headers: Mapping[str, str], media_type: str = "application/json"
) -> None:
    """One answer, without Starlette's response object."""
    if entry := request_log.current():
        entry.status = status
    fields = {"content-type": media_type, "content-length": str(len(body)), **headers}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def fault_of(error: Exception) -> ServeError:
    """What a client is told of an error that nobody foresaw; the log gets it whole."""
    logger.error("a request failed by a fault of the service", exc_info=error)
    return noted(ServeError("an error inside the service; the operator's log says more"))


def noted(error: ServeError) -> ServeError:
    """Has the request's line in the log say why there are no predictions."""
    if entry := request_log.current():
        entry.refused(error)
    return error


def render(error: ServeError) -> Response:
    return JSON(error.body(), status_code=error.status, headers=error.headers())


async def on_serve_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    return render(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such route, wrong method."""
    assert isinstance(error, HTTPException)
    if error.status_code == MethodNotAllowed.status:
        answer = render(MethodNotAllowed(f"{request.method} is not allowed for {request.url.path}"))
        answer.headers.update(error.headers or {})
        return answer
    if error.status_code == UnknownRoute.status:
        return render(UnknownRoute(f"nothing at {request.url.path}; POST pictures to /predict"))
    return render(RequestError(str(error.detail)))


async def on_fault(request: Request, error: Exception) -> Response:
    return render(fault_of(error))
