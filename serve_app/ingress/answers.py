"""How answers and errors are written; one place renders every error of the native API."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes out, without Starlette's response object."""

    body: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


async def respond(send: Send, answering: Awaitable[Answer], refusal: Callable[[ServeError], Answer]) -> None:
    """Sends what comes of `answering`: its answer, or `refusal` of its error; nothing where the client has gone away.

    Args:
        refusal: how an error is written in the protocol that the client speaks.
    """
    try:
        answer = await answering
    except ClientDisconnect:
        return  # nobody reads an answer
    except ServeError as error:
        answer = refusal(noted(error))
    except Exception as error:
        answer = refusal(fault_of(error))
    await _send(send, answer)


async def _send(send: Send, answer: Answer) -> None:
    if entry := request_log.current():
        entry.status = answer.status
    fields = {"content-type": answer.media_type, "content-length": str(len(answer.body)), **answer.headers}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": answer.body})


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
