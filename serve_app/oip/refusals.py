"""What the protocol knows and this service does not do."""

from __future__ import annotations

from serve_app.errors import Unsupported

STATUSES = frozenset({404, 405, 429, 500, 501, 503, 504})
"""HTTP statuses of errors; all others are 400, as Triton's are. It has no 429 and 504, but clients take every one but
200 alike."""


def models_are_configured() -> Unsupported:
    """The answer to loading and unloading models."""
    return Unsupported(
        "models are loaded and unloaded by the service's configuration, not by its clients; ask its operator to change "
        "`models` there"
    )


def no_shared_memory() -> Unsupported:
    """The answer to whatever names a shared memory region."""
    return Unsupported("shared memory is not supported; send the data with the request")


def settings_are_configured(kind: str) -> Unsupported:
    """The answer to changing settings of `kind` (trace, log) from outside."""
    return Unsupported(f"{kind} settings cannot be changed by clients; ask the service's operator to set them")
