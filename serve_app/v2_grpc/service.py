# ruff: noqa: N802  # methods have the names that the service gives them
"""The calls of the service, as methods of the ingress deployment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from google.protobuf import json_format

from serve_app import v2
from serve_app.errors import PayloadTooLarge, ServeError, UnknownModel
from serve_app.oip import metadata, wire
from serve_app.oip.messages import MESSAGES
from serve_app.oip.refusals import models_are_configured, no_shared_memory, settings_are_configured
from serve_app.oip.statistics import statistics
from serve_app.oip.values import InferRequest
from serve_app.pipeline import Pipeline
from serve_app.request_log import RequestEntry, RequestLog
from serve_app.settings import LimitSettings
from serve_app.tally import ModelTotals
from serve_app.v2_grpc.calls import Call, fault_of, request_id, unary
from serve_app.v2_grpc.handlers import REMAINING_MS
from serve_app.v2_grpc.streams import in_order

RETRY_ATTEMPT = "x-retry-attempt"
"""Metadata, as the header of the native API: this request was refused before."""
STREAM_AHEAD = 64
"""Requests of one stream that are in work at once."""
_WANTS_FINAL, _IS_FINAL = "triton_enable_empty_final_response", "triton_final_response"


class Replica(Protocol):
    """What the calls need of the replica they run in; see `ingress.Service`."""

    models: dict[str, Pipeline]
    request_log: RequestLog

    async def ready(self, model: str | None = None) -> bool: ...

    async def totals(self) -> Mapping[str, ModelTotals]: ...


class InferenceService:
    """A base of the ingress deployment, beside what makes it a `Replica`."""

    @unary
    async def ServerLive(self: Replica, request: Any, grpc_context: Call) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    @unary
    async def ServerReady(self: Replica, request: Any, grpc_context: Call) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=await self.ready())

    @unary
    async def ModelReady(self: Replica, request: Any, grpc_context: Call) -> Any:
        """A model there is not is not ready, as with Triton."""
        try:
            model, _ = v2.find(self.models, request.name, request.version)
        except UnknownModel:
            return MESSAGES["ModelReadyResponse"](ready=False)
        return MESSAGES["ModelReadyResponse"](ready=await self.ready(model.model))

    @unary
    async def ServerMetadata(self: Replica, request: Any, grpc_context: Call) -> Any:
        return _from_json(metadata.server_metadata(), "ServerMetadataResponse")

    @unary
    async def ModelMetadata(self: Replica, request: Any, grpc_context: Call) -> Any:
        model, _ = v2.find(self.models, request.name, request.version)
        return _from_json(metadata.model_metadata(model), "ModelMetadataResponse")

    @unary
    async def ModelConfig(self: Replica, request: Any, grpc_context: Call) -> Any:
        model, _ = v2.find(self.models, request.name, request.version)
        return _from_json({"config": metadata.model_config(model)}, "ModelConfigResponse")

    @unary
    async def ModelStatistics(self: Replica, request: Any, grpc_context: Call) -> Any:
        """Of one model, or of all where none is named."""
        models = v2.all_published(self.models)
        if request.name:
            models = [v2.find(self.models, request.name, request.version)[0]]
        return _from_json(statistics(models, await self.totals()), "ModelStatisticsResponse")

    @unary
    async def RepositoryIndex(self: Replica, request: Any, grpc_context: Call) -> Any:
        ready = {name: await self.ready(name) for name in self.models}
        models = [model for model in v2.all_published(self.models) if ready[model.model] or not request.ready]
        return _from_json({"models": metadata.repository_index(models, ready)}, "RepositoryIndexResponse")

    @unary
    async def RepositoryModelLoad(self: Replica, request: Any, grpc_context: Call) -> Any:
        raise models_are_configured()

    @unary
    async def RepositoryModelUnload(self: Replica, request: Any, grpc_context: Call) -> Any:
        raise models_are_configured()

    @unary
    async def ModelInfer(self: Replica, request: Any, grpc_context: Call) -> Any:
        return await _noted(self, dict(grpc_context.invocation_metadata()), request_id(grpc_context), request)

    async def ModelStreamInfer(
        self: Replica, request_stream: AsyncIterator[Any], grpc_context: Call
    ) -> AsyncIterator[Any]:
        """A request that fails is answered with its error, and the stream goes on."""
        sent = dict(grpc_context.invocation_metadata())
        sent.pop(REMAINING_MS, None)  # only a client can have said so: a stream has no time that is each request's
        answer = partial(_streamed, self, sent, request_id(grpc_context))
        async for one in in_order(request_stream, answer, STREAM_AHEAD):
            yield one

    @unary
    async def TraceSetting(self: Replica, request: Any, grpc_context: Call) -> Any:
        if request.settings:
            raise settings_are_configured("trace")
        if request.model_name:
            v2.find(self.models, request.model_name)
        return wire.trace_settings_message(metadata.TRACE_SETTINGS)

    @unary
    async def LogSettings(self: Replica, request: Any, grpc_context: Call) -> Any:
        if request.settings:
            raise settings_are_configured("log")
        return wire.log_settings_message(metadata.LOG_SETTINGS)

    @unary
    async def SystemSharedMemoryStatus(self: Replica, request: Any, grpc_context: Call) -> Any:
        """There are no regions."""
        return MESSAGES["SystemSharedMemoryStatusResponse"]()

    @unary
    async def SystemSharedMemoryRegister(self: Replica, request: Any, grpc_context: Call) -> Any:
        raise no_shared_memory()

    @unary
    async def SystemSharedMemoryUnregister(self: Replica, request: Any, grpc_context: Call) -> Any:
        raise no_shared_memory()

    @unary
    async def CudaSharedMemoryStatus(self: Replica, request: Any, grpc_context: Call) -> Any:
        return MESSAGES["CudaSharedMemoryStatusResponse"]()

    @unary
    async def CudaSharedMemoryRegister(self: Replica, request: Any, grpc_context: Call) -> Any:
        raise no_shared_memory()

    @unary
    async def CudaSharedMemoryUnregister(self: Replica, request: Any, grpc_context: Call) -> Any:
        raise no_shared_memory()


def _from_json(document: Mapping[str, Any], message: str) -> Any:
    """The message of what the REST API answers as JSON: they have the same names."""
    return json_format.ParseDict(document, MESSAGES[message]())


async def _infer(models: v2.Models, message: Any, sent: Mapping[str, Any]) -> Any:
    """Answers a `ModelInferRequest`.

    Args:
        sent: metadata of its call.

    Raises:
        PayloadTooLarge: the message is larger than a body may be.
        ServeError: see `v2.admit` and `v2.infer`.
    """
    retry = RETRY_ATTEMPT in sent
    with v2.admit(models, message.model_name, message.model_version, retry=retry) as ticket:
        limits = _limits(models)
        size = message.ByteSize()
        if size > limits.max_body_bytes:
            raise PayloadTooLarge(
                f"the message is larger than {limits.max_body_bytes} bytes; send a smaller picture, or fewer at once"
            )
        ticket.add_bytes(2 * size)  # the message, and the tensors that are taken out of it
        request = _within(wire.request_of(message), sent.get(REMAINING_MS), limits)
        return wire.response_message(await v2.infer(models, request, ticket))


async def _noted(replica: Replica, sent: Mapping[str, Any], request_id: str, message: Any) -> Any:
    """`_infer`, with a line in the log."""
    if replica.request_log.wanted == "none":
        return await _infer(replica.models, message, sent)
    entry = RequestEntry(request_id, "gRPC ModelInfer", retry=RETRY_ATTEMPT in sent)
    with replica.request_log.request(entry):
        entry.request_bytes = message.ByteSize()
        answer = await _infer(replica.models, message, sent)
        entry.status = 200
        return answer


async def _streamed(replica: Replica, sent: Mapping[str, Any], request_id: str, message: Any) -> Any:
    """Answers one request of a stream; an error comes with the id of its request, as Triton's do."""
    answer = MESSAGES["ModelStreamInferResponse"]
    marks_final = message.parameters[_WANTS_FINAL].bool_param  # of a map of messages: there from now on
    del message.parameters[_WANTS_FINAL]
    try:
        response = await _noted(replica, sent, request_id, message)
    except ServeError as error:
        return answer(error_message=str(error), infer_response={"id": message.id})
    except Exception as error:
        return answer(error_message=str(fault_of(error)), infer_response={"id": message.id})
    if marks_final:
        response.parameters[_IS_FINAL].bool_param = True
    return answer(infer_response=response)


def _within(request: InferRequest, remaining_ms: str | None, limits: LimitSettings) -> InferRequest:
    """The request with the earlier of its own timeout and that of its call."""
    own_us = request.parameters.get("timeout", 0)
    if remaining_ms is None or type(own_us) is not int:  # a wrong timeout is refused later
        return request
    call_us = 1000 * max(1, min(int(remaining_ms), limits.max_timeout_ms))
    if own_us and own_us <= call_us:
        return request
    return replace(request, parameters={**request.parameters, "timeout": call_us})


def _limits(models: v2.Models) -> LimitSettings:
    """The same for all models."""
    return next(iter(models.values())).settings.limits
