"""Routes beside those that classify: what is served, whether it is ready, and what it does."""

from __future__ import annotations

import httpx
from starlette.requests import Request
from starlette.responses import Response

from serve_app.errors import NotReady
from serve_app.ingress.answers import JSON
from serve_app.ingress.service import Service
from serve_app.scrape import CONTENT_TYPE, scrape


class Routes:
    """Starlette endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, request: Request) -> Response:
        return JSON({"models": self._service.describe()})

    async def healthz(self, request: Request) -> Response:
        return JSON({"live": True})

    async def readyz(self, request: Request) -> Response:
        if not await self._service.ready():
            raise NotReady("an engine is not loaded yet; try again in a second")
        return JSON({"ready": True})

    async def live(self, request: Request) -> Response:
        return JSON(await self._service.live(), headers={"cache-control": "no-store"})

    async def metrics(self, request: Request) -> Response:
        """Ray's metrics of all nodes on one page, for a Prometheus that reaches only this address."""
        try:
            text = await scrape(await self._service.metrics_addresses())
        except httpx.HTTPError as error:
            raise NotReady(f"Ray's metrics cannot be read at present ({error}); try again in a second") from None
        return Response(text, headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})
