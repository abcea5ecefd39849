"""`GET /openapi.json` and `GET /docs`: what the service speaks, for programs and for people."""

from __future__ import annotations

import base64
import hashlib
import re

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.ingress.service import Service
from serve_app.openapi import Json, Served, document, page

_ADDRESS = re.compile(r"https?://[A-Za-z0-9.:\[\]_/-]+")


class Docs:
    """The two routes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """For a Starlette application."""
        return [
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/docs", self.page, methods=["GET"]),
        ]

    async def openapi(self, request: Request) -> Response:
        body = orjson.dumps(self._document(request))
        return Response(body, media_type="application/json", headers={"cache-control": "no-cache"})

    async def page(self, request: Request) -> Response:
        text = page(self._document(request), _address(request))
        headers = {"cache-control": "no-cache", "content-security-policy": _policy(text)}
        return Response(text, media_type="text/html", headers=headers)

    def _document(self, request: Request) -> Json:
        pipelines = self._service.models
        return document(
            Served(
                models=tuple(pipelines),
                num_classes=max(one.manifest.num_classes for one in pipelines.values()),
                limits=next(iter(pipelines.values())).settings.limits,
                root_path=request.scope.get("root_path", ""),
            )
        )


def _address(request: Request) -> str:
    """Where the reader found us, as far as it can stand in a command; what a browser was sent to is not more than
    letters, digits and dots."""
    address = str(request.base_url).rstrip("/")
    return address if _ADDRESS.fullmatch(address) else "http://localhost:8000"


def _policy(text: str) -> str:
    """A Content-Security-Policy under which this page's own style is all that a browser takes."""
    [style] = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
