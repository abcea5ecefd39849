"""The whole document."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version

from serve_app.api import error_classes
from serve_app.openapi import torchserve, v2
from serve_app.openapi.native import TAGS, native_paths, native_schemas
from serve_app.openapi.parts import MEANING, Json, Served

_DESCRIPTION = (
    "Another path than those below is answered 404 `not_found` (307 where only a slash at its end is wrong), another "
    "method 405 `method_not_allowed`. What stands in front of the service may answer in words of its own: 400 to what "
    "is not HTTP, and 502, 503 or 504 while replicas start or end."
)


@lru_cache(maxsize=4)
def document(served: Served) -> Json:
    """The OpenAPI 3.1 description of a service with this configuration; not to be changed by who gets it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Image Serve",
            "version": version("image-serve"),
            "summary": "Pictures in, labelled classes out.",
            "description": _DESCRIPTION,
        },
        "servers": [{"url": served.root_path or "/"}],
        "tags": [*TAGS, v2.TAG, torchserve.TAG, {"name": "Errors", "description": _codes()}],
        "paths": native_paths(served) | v2.v2_paths(served) | torchserve.torchserve_paths(served),
        "components": {"schemas": native_schemas() | v2.v2_schemas() | torchserve.torchserve_schemas()},
    }


def _codes() -> str:
    """The error tree, in Markdown."""
    rows = sorted({(error.status.value, error.code, MEANING[error]) for error in error_classes()})
    return "\n".join(
        [
            "A stable code for programs, and a message for people that says what to do.",
            "",
            "| status | code | when |",
            "|---|---|---|",
            *(f"| {status} | `{code}` | {when} |" for status, code, when in rows),
        ]
    )
