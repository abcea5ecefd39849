"""The ASGI application of one replica: which path goes where."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from serve_app.errors import ServeError
from serve_app.ingress.answers import on_fault, on_http_exception, on_serve_error
from serve_app.ingress.docs import Docs
from serve_app.ingress.page import Page
from serve_app.ingress.predict import PREDICT_PATH, Predict
from serve_app.ingress.routes import Routes
from serve_app.ingress.service import Service
from serve_app.ingress.torchserve import PING, PREDICTIONS, TorchServe
from serve_app.ingress.v2_http import PREFIX, V2
from serve_app.ingress.watched import Watched


class App:
    """Pictures take the short way, everything else goes through Starlette.

    `routes` and `router` are for Serve, which names requests in its metrics by them.
    """

    def __init__(self, service: Service) -> None:
        self._predict = Predict(service)
        self._v2, self._torchserve = V2(service), TorchServe(service)
        self._watched = Watched(service.request_log)
        self._rest = _starlette(service, self._predict, self._v2, self._torchserve)
        self.routes, self.router = self._rest.routes, self._rest.router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == PREDICT_PATH and scope["method"] == "POST":
            await self._watched(self._predict, PREDICT_PATH, scope, receive, send)
        elif path == PREFIX or path.startswith(f"{PREFIX}/"):
            if path.endswith("/infer"):
                await self._watched(self._v2, f"{PREFIX}/models/NAME/infer", scope, receive, send)
            else:
                await self._v2(scope, receive, send)
        elif path.startswith(f"{PREDICTIONS}/"):
            await self._watched(self._torchserve, f"{PREDICTIONS}/NAME", scope, receive, send)
        elif path == PING:
            await self._torchserve(scope, receive, send)
        else:
            await self._rest(scope, receive, send)


def create_app(service: Service) -> App:
    """The ASGI application of one replica."""
    return App(service)


def _starlette(service: Service, predict: Predict, v2: V2, torchserve: TorchServe) -> Starlette:
    routes, page = Routes(service), Page()
    return Starlette(
        routes=[
            Route(PREDICT_PATH, predict, methods=["POST"]),  # for its name and its 405
            Route("/models", routes.models, methods=["GET"]),
            Route("/healthz", routes.healthz, methods=["GET"]),
            Route("/readyz", routes.readyz, methods=["GET"]),
            Route("/live", routes.live, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
            *Docs(service).routes(),
            Route("/", page.page, methods=["GET"]),
            Route("/static/{name}", page.static, methods=["GET"]),
            Route(PREFIX, v2),  # from here on for their names only
            Mount(PREFIX, v2),
            Mount(PREDICTIONS, torchserve),
            Route(PING, torchserve),
        ],
        exception_handlers={
            ServeError: on_serve_error,
            HTTPException: on_http_exception,
            Exception: on_fault,
        },
    )
