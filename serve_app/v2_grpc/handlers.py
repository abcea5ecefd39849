"""What Serve's gRPC server is told of the service: its calls, and how their messages are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from serve_app.oip.messages import DESCRIPTOR, MESSAGES, SERVICE

REMAINING_MS = "x-call-remaining-ms"
"""Metadata by which a call tells how long its caller still waits."""


def add_to_server(servicer: object, server: Any) -> None:
    """For `grpc_options.grpc_servicer_functions` of a configuration.

    Args:
        servicer: nothing; Serve puts its own handlers in the place of a servicer's.
        server: Serve's.
    """
    calls = {f"/{SERVICE}/{method.name}": _handler(method) for method in DESCRIPTOR.methods}
    server.add_generic_rpc_handlers((_Calls(calls),))


def _handler(method: Any) -> grpc.RpcMethodHandler:
    make: Callable[..., grpc.RpcMethodHandler] = (
        grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
    )
    return make(None, request_deserializer=MESSAGES[method.input_type.name].FromString)


class _Calls(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """As code that protoc generates has them: Serve replaces what is in `_method_handlers`."""

    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        self._method_handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        handler = self._method_handlers.get(handler_call_details.method)
        return handler if handler is None or handler.request_streaming else _telling_time(handler)


def _telling_time(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    answer = handler.unary_unary

    async def timed(request: Any, context: Any) -> Any:
        return await answer(request, _Timed(context))

    return handler._replace(unary_unary=timed)


@dataclass(frozen=True, slots=True)
class _Timed:
    """A call's context with the time that its caller gave it among the metadata: Serve hands on the metadata only."""

    _context: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        sent = [(key, value) for key, value in self._context.invocation_metadata() if key != REMAINING_MS]
        remaining_s = self._context.time_remaining()
        return sent if remaining_s is None else [*sent, (REMAINING_MS, f"{remaining_s * 1e3:.0f}")]
