"""Serve's own gRPC server in this process, with a replica behind it, but without Ray."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from ray.serve._private.grpc_util import gRPCGenericServer, set_grpc_code_and_details
from ray.serve._private.proxy_request_response import ResponseStatus, gRPCStreamingType
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream
from tritonclient.grpc import service_pb2

from serve_app.v2_grpc import InferenceService, add_to_server
from tests.fakes import FakeService
from tests.test_ingress import png

DONE = ResponseStatus(code=grpc.StatusCode.OK)


class GrpcReplica(FakeService, InferenceService):
    """What `Preprocessor` is, in front of a fake classifier."""


def _handlers(replica: GrpcReplica) -> Callable[..., Any]:
    """What Serve does with a call between its server and the deployment's method, by way of its proxy: request and
    context are pickled on their way."""

    def handler(service_method: str, streaming_type: gRPCStreamingType) -> Any:
        name = service_method.rpartition("/")[2]

        async def unary(request: Any, context: Any) -> bytes:
            call = pickle.loads(pickle.dumps(RayServegRPCContext(context)))
            call.set_trailing_metadata([("request_id", "1")])
            answer = await getattr(replica, name)(pickle.loads(pickle.dumps(request)), grpc_context=call)
            data: bytes = answer.SerializeToString()
            call._set_on_grpc_context(context)
            set_grpc_code_and_details(context, DONE)
            return data

        async def stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[bytes]:
            call = pickle.loads(pickle.dumps(RayServegRPCContext(context)))
            answers = getattr(replica, name)(gRPCInputStream(requests), grpc_context=call)
            try:
                async for answer in answers:
                    yield answer.SerializeToString()
            finally:
                await answers.aclose()

        return stream if streaming_type == gRPCStreamingType.STREAM_STREAM else unary

    return handler


@asynccontextmanager
async def serving(replica: GrpcReplica) -> AsyncIterator[str]:
    """Its address, `127.0.0.1:PORT`."""
    server = gRPCGenericServer(_handlers(replica))
    port = server.add_insecure_port("127.0.0.1:0")
    add_to_server(None, server)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def files(*bodies: bytes) -> list[Any]:
    """The input of a model that takes pictures, for Triton's clients."""
    data = np.array(bodies, object).reshape(-1, 1)
    given = triton.InferInput("image", list(data.shape), "BYTES")
    given.set_data_from_numpy(data)
    return [given]


def message(model: str = "fake", **fields: Any) -> Any:
    """A `ModelInferRequest` with one picture, as Triton's own class."""
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [png(1)]}}
    return service_pb2.ModelInferRequest(model_name=model, **{"inputs": [given], **fields})


async def until(holds: Callable[[], bool]) -> None:
    """Returns when it does."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)
