"""Everything that can go wrong, in the order a picture meets it; each class carries its HTTP answer.

ServeError
|- RequestError                 the client can mend it
|   |- InvalidRequest      400  no picture in the request, or a body that is not what its type says
|   |- UnknownRoute        404  no such path
|   |- UnknownModel        404  no such model
|   |- MethodNotAllowed    405
|   |- PayloadTooLarge     413  too many bytes, pixels or pictures
|   |- UnsupportedFormat   415  not a picture format that is served
|   |- BrokenPicture       422  the right format, but it does not decode
|   |- BadParameter        422  top_k, a timeout, ... out of range
|   `- Unsupported         501  a call of a protocol that is not served here
|- Overloaded              429  announced refusal, with Retry-After
|- InferenceFailed         500  the engine failed on good input: a fault of ours
|- NotReady                503  engine not loaded, or going away
`- DeadlineExceeded        504  the caller's time was up before the answer
SetupError                      stops a start, never answers a request
|- ConfigError                  the configuration file
|- EngineError                  an engine folder that does not fit its manifest, or this machine
`- GpuMissing                   no GPU, driver or GPU package where one is needed
GpuFailed                       the GPU or TensorRT refused something, with what TensorRT logged
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import ClassVar, Literal


class ServeError(Exception):
    """Base of what a request can be answered with instead of predictions.

    Attributes:
        status: HTTP status of the answer.
        code: stable machine-readable name, `error.code` of the answer.
    """

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    code: ClassVar[str] = "internal"

    def headers(self) -> dict[str, str]:
        """Extra response headers."""
        return {}

    def body(self) -> dict[str, dict[str, str]]:
        """The JSON object of the answer."""
        return {"error": {"code": self.code, "message": str(self)}}


class RequestError(ServeError):
    """The client can mend it."""

    status = HTTPStatus.BAD_REQUEST
    code = "bad_request"


class InvalidRequest(RequestError):
    code = "invalid_request"


class UnknownRoute(RequestError):
    status = HTTPStatus.NOT_FOUND
    code = "not_found"


class UnknownModel(RequestError):
    status = HTTPStatus.NOT_FOUND
    code = "unknown_model"


class MethodNotAllowed(RequestError):
    """Another method is wanted.

    Args:
        message: which one was sent, and which are wanted.
        allowed: those, for the header `Allow`.
    """

    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"

    def __init__(self, message: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)

    def __reduce__(self) -> tuple[type[MethodNotAllowed], tuple[str, tuple[str, ...]]]:
        return type(self), (str(self), self.allowed)

    def headers(self) -> dict[str, str]:
        return {"allow": ", ".join(self.allowed)} if self.allowed else {}


class PayloadTooLarge(RequestError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "too_large"


class UnsupportedFormat(RequestError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_format"


class BrokenPicture(RequestError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "broken_picture"


class BadParameter(RequestError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "bad_parameter"


class Unsupported(RequestError):
    """A call or an extension that is part of a protocol, and is not served here."""

    status = HTTPStatus.NOT_IMPLEMENTED
    code = "unsupported"


class Overloaded(ServeError):
    """Refused before any work was done on it.

    Args:
        message: what is full.
        retry_after_s: when the present backlog should be gone; sent as whole seconds, at least 1.
    """

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[Overloaded], tuple[str, float]]:
        return type(self), (str(self), self.retry_after_s)

    def headers(self) -> dict[str, str]:
        return {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}


class InferenceFailed(ServeError):
    code = "inference_failed"


class NotReady(ServeError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "not_ready"

    def headers(self) -> dict[str, str]:
        return {"retry-after": "1"}


class DeadlineExceeded(ServeError):
    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "deadline_exceeded"


Fault = Literal["shed", "rejected", "failed"]
"""What became of a request without an answer: refused early, not to be answered as it was, or failed by the service."""


def fault_of_codes() -> dict[str, Fault]:
    """Of every error code."""
    return {error.code: _fault(error) for error in _below(ServeError)}


def _fault(error: type[ServeError]) -> Fault:
    if issubclass(error, Overloaded):
        return "shed"
    return "rejected" if issubclass(error, RequestError) else "failed"


def _below(error: type[ServeError]) -> set[type[ServeError]]:
    return {error}.union(*(_below(child) for child in error.__subclasses__()))


class SetupError(Exception):
    """Stops a start. The message ends with what to do next."""


class ConfigError(SetupError):
    """The configuration file is wrong."""


class EngineError(SetupError):
    """An engine folder is missing, or does not fit its manifest."""


class GpuMissing(SetupError):
    """No GPU, driver or GPU package where one is needed."""


class GpuFailed(Exception):
    """The GPU or TensorRT refused something while an engine was opened or run.

    Args:
        what: was being done.
        lines: what TensorRT logged meanwhile, often the only reason there is.
    """

    def __init__(self, what: str, lines: Sequence[str] = ()) -> None:
        super().__init__(f"{what}; TensorRT said: {' | '.join(lines)}" if lines else what)
        self.what = what
        self.lines = tuple(lines)

    def __reduce__(self) -> tuple[type[GpuFailed], tuple[str, tuple[str, ...]]]:
        return type(self), (self.what, self.lines)
