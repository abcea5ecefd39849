"""How a call ends: its answer, or a status with a message that says what to do."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, Protocol

import grpc

from serve_app.errors import ServeError
from serve_app.oip.messages import DESCRIPTOR, MESSAGES

logger = logging.getLogger(__name__)
ERROR_CODE = "error-code"
"""Trailing metadata with the same code as `error.code` of the native API."""
MAX_DETAILS = 2000
"""Characters: a status travels in headers, which clients bound."""

_CODES = {
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
    HTTPStatus.NOT_IMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""All others are mistakes of the client: INVALID_ARGUMENT."""


class Call(Protocol):
    """What is used of Serve's `RayServegRPCContext`."""

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]: ...

    def set_code(self, code: Any) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None: ...

    def trailing_metadata(self) -> Sequence[tuple[str, Any]] | None: ...


Method = Callable[[Any, Any, Call], Awaitable[Any]]


def unary(method: Method) -> Method:
    """A method whose `ServeError` becomes the status of its call.

    The status is set, not raised: for what is raised, Serve writes a traceback into its log and forgets the trailing
    metadata.
    """
    empty = MESSAGES[DESCRIPTOR.methods_by_name[method.__name__].output_type.name]

    @functools.wraps(method)
    async def answered(self: Any, request: Any, grpc_context: Call) -> Any:
        try:
            return await method(self, request, grpc_context)
        except ServeError as error:
            _refuse(grpc_context, error)
        except Exception as error:
            _refuse(grpc_context, fault_of(error))
        return empty()

    return answered


def request_id(call: Call) -> str:
    """What Serve tells the client in its trailing metadata."""
    return str(dict(call.trailing_metadata() or ()).get("request_id", ""))


def fault_of(error: Exception) -> ServeError:
    """What a client is told of an error that nobody foresaw; the log gets it whole."""
    logger.error("a gRPC call failed by a fault of the service", exc_info=error)
    return ServeError("an error inside the service; the operator's log says more")


def _refuse(call: Call, error: ServeError) -> None:
    call.set_code(_CODES.get(error.status, grpc.StatusCode.INVALID_ARGUMENT))
    call.set_details(str(error)[:MAX_DETAILS])
    call.set_trailing_metadata([(ERROR_CODE, error.code), *error.headers().items()])
