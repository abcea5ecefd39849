"""Requests that classify leave a line in the log, and continue their client's trace."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app import tracing
from serve_app.api.parameters import PRIORITY, RETRY_ATTEMPT
from serve_app.request_log import RequestEntry, RequestLog

_REQUEST_ID, _LENGTH, _TRACEPARENT = b"x-request-id", b"content-length", b"traceparent"
_RETRY, _PRIORITY = RETRY_ATTEMPT.name.encode(), PRIORITY.name.encode()


class Watched:
    """Calls ASGI applications.

    Args:
        log: where lines go; where it wants none, and nothing is traced, a call costs nothing more.
    """

    def __init__(self, log: RequestLog) -> None:
        self._log = log

    async def __call__(self, app: ASGIApp, route: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Args: as those of an ASGI application; `route` is its path, without what clients choose in it."""
        if tracing.on():
            name = f"{scope['method']} {route}"
            with tracing.request(name, dict(scope["headers"]).get(_TRACEPARENT, b"").decode("latin-1")):
                await self._logged(app, route, scope, receive, send)
        else:
            await self._logged(app, route, scope, receive, send)

    async def _logged(self, app: ASGIApp, route: str, scope: Scope, receive: Receive, send: Send) -> None:
        if self._log.wanted == "none":
            await app(scope, receive, send)
            return
        with self._log.request(_entry(f"{scope['method']} {route}", scope)):
            await app(scope, receive, send)


def _entry(route: str, scope: Scope) -> RequestEntry:
    """The headers are read once: looking one up costs as much as the rest."""
    entry = RequestEntry("", route)
    for name, value in scope["headers"]:
        if name == _REQUEST_ID:
            entry.request_id = value.decode("latin-1")
        elif name == _LENGTH and value.isdigit():
            entry.request_bytes = int(value)
        elif name == _RETRY:
            entry.retry = True
        elif name == _PRIORITY and value == b"batch":
            entry.priority = "batch"
    return entry
