"""HTTP: routes, parameters, answers and errors."""

from serve_app.ingress.app import App, create_app
from serve_app.ingress.service import Service

__all__ = ["App", "Service", "create_app"]
