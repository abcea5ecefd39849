"""Triton's genuine gRPC clients against the running service; tests/test_v2_grpc.py has the finer points."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from scripts.local_service import grpc_address
from serve_app.manifest import InputSpec
from serve_app.preprocess import make_preprocess

pytestmark = pytest.mark.service
COLOCATED, SPLIT = "efficientnet_lite0", "samples4"


@pytest.fixture(scope="module")
def models(clients_address: str) -> dict[str, dict[str, Any]]:
    found = httpx.get(f"{clients_address}/models", timeout=30).json()["models"]
    return {one["name"]: one for one in found}


@pytest.fixture(scope="module")
def client(clients_address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(grpc_address(clients_address)) as made:
        yield made


def files(*bodies: bytes) -> list[Any]:
    data = np.array(bodies, object).reshape(-1, 1)
    given = triton.InferInput("image", list(data.shape), "BYTES")
    given.set_data_from_numpy(data)
    return [given]


def native(address: str, model: str, body: bytes, classes: int) -> np.ndarray:
    """Scores of every class by the native API."""
    answer = httpx.post(f"{address}/predict", params={"model": model, "top_k": classes}, content=body, timeout=60)
    scores = np.zeros(classes, np.float32)
    for one in answer.json()["predictions"]:
        scores[one["class_id"]] = one["score"]
    return scores


@pytest.mark.parametrize("model", [COLOCATED, SPLIT])
def test_answers_are_the_native_apis(
    client: Any, clients_address: str, models: dict[str, Any], photographs: dict[str, bytes], model: str
) -> None:
    classes = models[model]["num_classes"]
    bodies = [photographs["cat.jpg"], photographs["espresso.jpg"]]
    result = client.infer(model, files(*bodies), request_id="7")
    assert result.get_response().id == "7"
    assert result.get_response().model_version == str(models[model]["version"])
    expected = np.stack([native(clients_address, model, body, classes) for body in bodies])
    np.testing.assert_allclose(result.as_numpy("scores"), expected, atol=2e-3)


def test_a_client_that_preprocesses_by_itself(
    client: Any, clients_address: str, models: dict[str, Any], photographs: dict[str, bytes]
) -> None:
    about = models[COLOCATED]
    spec = InputSpec.model_validate(about["input"])
    picture = make_preprocess("exact", spec, 50_000_000)(photographs["cat.jpg"])
    pixels = ((picture / np.float32(255) - np.float32(spec.mean)) / np.float32(spec.std)).transpose(2, 0, 1)
    given = triton.InferInput("pixels", [1, 3, spec.height, spec.width], "FP32")
    given.set_data_from_numpy(pixels[None].astype(np.float32))
    scores = client.infer(f"{COLOCATED}_tensor", [given]).as_numpy("scores")[0]
    expected = native(clients_address, COLOCATED, photographs["cat.jpg"], about["num_classes"])
    np.testing.assert_allclose(scores, expected, atol=2e-3)


def test_classification(client: Any, photographs: dict[str, bytes]) -> None:
    outputs = [triton.InferRequestedOutput("scores", class_count=3)]
    [best] = client.infer(COLOCATED, files(photographs["espresso.jpg"]), outputs=outputs).as_numpy("scores")
    assert len(best) == 3
    assert best[0].decode().endswith(":espresso")


def test_every_other_call(client: Any, models: dict[str, Any]) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "image-serve"
    index = client.get_model_repository_index().models
    assert {one.name for one in index} == {name + suffix for name in models for suffix in ("", "_tensor")}
    for one in index:
        assert client.is_model_ready(one.name, one.version)
        metadata = client.get_model_metadata(one.name, one.version)
        config = client.get_model_config(one.name).config
        classes = models[one.name.removesuffix("_tensor")]["num_classes"]
        assert (metadata.outputs[0].shape[1], config.output[0].dims[0]) == (classes, classes)
    statistics = client.get_inference_statistics(COLOCATED).model_stats[0]
    assert statistics.inference_stats.success.count == statistics.inference_count
    assert client.get_trace_settings().settings["trace_level"].value == ["OFF"]
    assert "log_info" in client.get_log_settings().settings
    assert not client.get_system_shared_memory_status().regions
    assert not client.get_cuda_shared_memory_status().regions


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("load_model", (COLOCATED,)),
        ("unload_model", (COLOCATED,)),
        ("update_trace_settings", (None, {"trace_level": ["OFF"]})),
        ("update_log_settings", ({"log_info": False},)),
        ("register_system_shared_memory", ("a", "/a", 8)),
        ("unregister_system_shared_memory", ()),
        ("register_cuda_shared_memory", ("a", b"\0", 0, 8)),
        ("unregister_cuda_shared_memory", ()),
    ],
)
def test_what_is_not_served_says_so(client: Any, call: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InferenceServerException) as caught:
        getattr(client, call)(*arguments)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("model", "body", "status", "said"),
    [
        ("nobody", b"", "NOT_FOUND", "no model 'nobody' here"),
        (COLOCATED, b"text", "INVALID_ARGUMENT", "format"),
        (SPLIT, b"text", "INVALID_ARGUMENT", "format"),
        (COLOCATED + "_tensor", b"text", "INVALID_ARGUMENT", "takes 'pixels', FP32"),
    ],
)
def test_wrong_input(client: Any, model: str, body: bytes, status: str, said: str) -> None:
    with pytest.raises(InferenceServerException, match=said) as caught:
        client.infer(model, files(body))
    assert caught.value.status() == f"StatusCode.{status}"


def test_a_message_above_the_limits(clients_address: str) -> None:
    """Above `limits.max_body_bytes` the service refuses it; above the gRPC server's own limit, gRPC does."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(grpc_address(clients_address), options=options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for mebibytes, code, said in (
            (21, grpc.StatusCode.INVALID_ARGUMENT, "the message is larger than 20971520 bytes; send a smaller"),
            (65, grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
        ):
            given = {"name": "image", "datatype": "BYTES", "shape": [1]}
            sent = service_pb2.ModelInferRequest(
                model_name=COLOCATED, inputs=[given], raw_input_contents=[bytes(mebibytes * 2**20)]
            )
            with pytest.raises(grpc.RpcError, match=said) as caught:
                stub.ModelInfer(sent)
            assert caught.value.code() is code
            assert ("error-code", "too_large") in caught.value.trailing_metadata() or mebibytes == 65


def test_a_deadline_ends_a_call(client: Any, photographs: dict[str, bytes]) -> None:
    for limits in ({"client_timeout": 0.001}, {"timeout": 1000}):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(SPLIT, files(photographs["cat.jpg"]), **limits)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_many_at_once(client: Any, photographs: dict[str, bytes]) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    names = ["cat.jpg", "espresso.jpg"] * 6
    for place, name in enumerate(names):
        body = files(photographs[name])
        client.async_infer(
            COLOCATED, body, lambda result, error: answers.put(error or result), request_id=str(place), priority=2
        )
    found = [answers.get(timeout=60) for _ in names]
    best = {int(one.get_response().id): int(one.as_numpy("scores").argmax()) for one in found}
    assert [best[place] for place in range(12)] == [best[0], best[1]] * 6
    assert best[0] != best[1]


@pytest.mark.parametrize("model", [COLOCATED, SPLIT])
def test_a_stream(client: Any, photographs: dict[str, bytes], model: str) -> None:
    answers: list[tuple[Any, Any]] = []
    client.start_stream(lambda result, error: answers.append((result, error)))
    for place, body in enumerate([photographs["cat.jpg"], b"text", photographs["espresso.jpg"]]):
        client.async_stream_infer(model, files(body), request_id=str(place))
    client.stop_stream()
    assert [error is None for _, error in answers] == [True, False, True]
    assert [result.get_response().id for result, error in answers if error is None] == ["0", "2"]


def test_the_asyncio_client(clients_address: str, photographs: dict[str, bytes]) -> None:
    espresso = photographs["espresso.jpg"]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for place in range(4):
            yield {"model_name": SPLIT, "inputs": files(espresso), "request_id": str(place)}

    async def calls() -> tuple[list[int], list[int]]:
        async with triton_aio.InferenceServerClient(grpc_address(clients_address)) as made:
            assert await made.is_model_ready(SPLIT)
            several = await asyncio.gather(*(made.infer(COLOCATED, files(espresso)) for _ in range(4)))
            streamed = [result async for result, error in made.stream_infer(requests()) if error is None]
            with pytest.raises(InferenceServerException, match="no model"):
                await made.get_model_config("nobody")
        ids = [int(one.get_response().id) for one in streamed]
        return [int(one.as_numpy("scores").argmax()) for one in several], ids

    best, ids = asyncio.run(calls())
    assert len(set(best)) == 1
    assert ids == [0, 1, 2, 3]
