"""`import_path: serve_app.app:build` of every configuration: from `args` to bound deployments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.serve import Application

from serve_app.deployments import application
from serve_app.engines import find_engine
from serve_app.ingress import create_app
from serve_app.settings import Settings, parse_settings


def build(args: dict[str, Any]) -> Application:
    """The application, as Ray Serve asks for it.

    Args:
        args: see `settings.Settings`.

    Raises:
        ConfigError: unknown keys or values.
        EngineError: no such engine, or one that does not fit its manifest: better here than in every replica.
    """
    settings = _with_absolute_paths(parse_settings(args))
    find_engine(settings.engine)
    return application(settings, create_app)


def _with_absolute_paths(settings: Settings) -> Settings:
    """Replicas run in folders of their own: a relative path means the folder the service was started in."""
    engines_dir = Path(settings.engine.engines_dir).absolute()
    return settings.model_copy(update={"engine": settings.engine.model_copy(update={"engines_dir": engines_dir})})
