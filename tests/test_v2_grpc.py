"""Triton's own client against the service on Serve's own gRPC server, with a fake engine; the same runs against the
real service in tests/service/clients."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from serve_app.errors import InferenceFailed, NotReady
from serve_app.ingress import create_app
from serve_app.oip.metadata import LOG_SETTINGS, TRACE_SETTINGS
from serve_app.request_log import GONE, RequestLog
from tests.fakes import CLASSES, FakeClassifier
from tests.grpc_helpers import GrpcReplica, files, message, serving, until
from tests.test_ingress import png


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


@pytest.fixture
def replica(classifier: FakeClassifier) -> GrpcReplica:
    return GrpcReplica(classifier, names=("fake", "other"))


@pytest.fixture
async def address(replica: GrpcReplica) -> AsyncIterator[str]:
    async with serving(replica) as started:
        yield started


@pytest.fixture
async def client(address: str) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(address) as made:
        yield made


@pytest.fixture
async def stub(address: str) -> AsyncIterator[Any]:
    """For what the client does not show: trailing metadata, and messages that it would not send."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def pixels(*values: float) -> list[Any]:
    """Pictures of one value, as a client of NAME_tensor has them."""
    data = np.stack([np.full((3, 4, 4), value, np.float32) for value in values])
    given = triton.InferInput("pixels", list(data.shape), "FP32")
    given.set_data_from_numpy(data)
    return [given]


async def refused(answer: Any, code: grpc.StatusCode, said: str) -> dict[str, str]:
    """Trailing metadata of a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError, match=said) as caught:
        await answer
    assert caught.value.code() is code, caught.value.details()
    return dict(caught.value.trailing_metadata() or ())


class Seen:
    """What reached the pipeline of a replica."""

    def __init__(self, replica: GrpcReplica, model: str = "fake") -> None:
        self.timeouts_s: list[float] = []
        self.priorities: list[str] = []
        pipeline = replica.models[model]
        classify, clock = pipeline.classify, pipeline.clock

        async def seen(inputs: Any, k: int, deadline_s: float, ticket: Any) -> Any:
            self.timeouts_s.append(deadline_s - clock())
            self.priorities.append(ticket.priority)
            return await classify(inputs, k, deadline_s, ticket)

        pipeline.classify = seen  # type: ignore[method-assign]


async def test_server_calls(client: Any, replica: GrpcReplica) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    metadata = await client.get_server_metadata()
    assert metadata.name == "image-serve"
    assert {"classification", "binary_tensor_data", "statistics"} <= set(metadata.extensions)
    replica.is_ready = False
    assert await client.is_server_live()
    assert not await client.is_server_ready()


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("fake", "", True), ("fake_tensor", "1", True), ("other", "1", True), ("fake", "2", False), ("nobody", "", False)],
)
async def test_model_ready(client: Any, name: str, version: str, ready: bool) -> None:
    assert await client.is_model_ready(name, version) is ready


async def test_model_metadata_and_config(client: Any) -> None:
    metadata = await client.get_model_metadata("fake_tensor")
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("fake_tensor", ["1"], "openvino")
    [given], [answered] = metadata.inputs, metadata.outputs
    assert (given.name, given.datatype, list(given.shape)) == ("pixels", "FP32", [-1, 3, 4, 4])
    assert (answered.name, answered.datatype, list(answered.shape)) == ("scores", "FP32", [-1, CLASSES])
    config = (await client.get_model_config("fake_tensor")).config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("fake_tensor", 64, [3, 4, 4])
    assert (config.input[0].data_type, config.input[0].format) == (11, 2)  # TYPE_FP32, FORMAT_NCHW


async def test_repository_index(client: Any, stub: Any, replica: GrpcReplica) -> None:
    index = await client.get_model_repository_index()
    assert [one.name for one in index.models] == ["fake", "fake_tensor", "other", "other_tensor"]
    assert {(one.version, one.state) for one in index.models} == {("1", "READY")}
    replica.is_ready = False
    index = await client.get_model_repository_index()
    assert {one.state for one in index.models} == {"UNAVAILABLE"}
    assert not (await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True))).models


async def test_statistics(client: Any) -> None:
    await client.infer("fake", files(png(1), png(2)))
    with pytest.raises(InferenceServerException):
        await client.infer("fake", files(b"no picture"))
    [one] = (await client.get_inference_statistics("fake")).model_stats
    assert (one.name, one.version, one.inference_count) == ("fake", "1", 2)
    assert (one.inference_stats.success.count, one.inference_stats.fail.count) == (2, 1)
    assert one.inference_stats.compute_infer.ns > 0
    everything = (await client.get_inference_statistics()).model_stats
    assert [one.name for one in everything] == ["fake", "fake_tensor", "other", "other_tensor"]
    assert everything[2].inference_count == 0


async def test_settings_and_shared_memory_can_be_looked_at(client: Any) -> None:
    for settings in (
        await client.get_trace_settings(as_json=True),
        await client.get_trace_settings("fake", as_json=True),
    ):
        assert settings["settings"]["trace_level"] == {"value": ["OFF"]}
        assert settings["settings"].keys() == TRACE_SETTINGS.keys()
    found = (await client.get_log_settings()).settings
    assert {name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in found.items()} == LOG_SETTINGS
    assert not (await client.get_system_shared_memory_status()).regions
    assert not (await client.get_cuda_shared_memory_status()).regions


@pytest.mark.parametrize(
    ("call", "arguments", "said"),
    [
        ("load_model", ("fake",), "by the service's configuration"),
        ("unload_model", ("fake",), "by the service's configuration"),
        ("update_trace_settings", ("fake", {"trace_level": ["OFF"]}), "trace settings cannot be changed"),
        ("update_log_settings", ({"log_info": True},), "log settings cannot be changed"),
        ("register_system_shared_memory", ("a", "/a", 8), "shared memory is not supported"),
        ("register_cuda_shared_memory", ("a", b"\0", 0, 8), "shared memory is not supported"),
        ("unregister_system_shared_memory", (), "shared memory is not supported"),
        ("unregister_cuda_shared_memory", ("a",), "shared memory is not supported"),
    ],
)
async def test_what_is_not_served_is_unimplemented(client: Any, call: str, arguments: Any, said: str) -> None:
    with pytest.raises(InferenceServerException, match=said) as caught:
        await getattr(client, call)(*arguments)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize(
    "call", ["get_model_metadata", "get_model_config", "get_inference_statistics", "get_trace_settings"]
)
async def test_calls_about_a_model_there_is_not(client: Any, call: str) -> None:
    with pytest.raises(InferenceServerException, match="no model 'nobody' here; served: fake, ") as caught:
        await getattr(client, call)("nobody")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


async def test_answers_are_the_native_apis(client: Any, replica: GrpcReplica) -> None:
    result = await client.infer("fake", files(png(3), png(1)), request_id="7")
    scores = result.as_numpy("scores")
    assert (scores.shape, scores.argmax(1).tolist()) == ((2, CLASSES), [3, 1])
    answer = result.get_response()
    assert (answer.model_name, answer.model_version, answer.id) == ("fake", "1", "7")
    transport = httpx.ASGITransport(create_app(replica))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        native = (await http.post("/predict", content=png(3), params={"top_k": CLASSES})).json()
    by_class = {one["class_id"]: one["score"] for one in native["predictions"]}
    assert scores[0] == pytest.approx([by_class[index] for index in range(CLASSES)], abs=1e-6)


async def test_tensors_and_files_of_another_model(client: Any, classifier: FakeClassifier) -> None:
    result = await client.infer("other_tensor", pixels(-2.0, 2.0))
    assert (result.get_response().model_name, result.as_numpy("scores").shape) == ("other_tensor", (2, CLASSES))
    assert sum(classifier.chunks) == 2


async def test_classification(client: Any) -> None:
    outputs = [triton.InferRequestedOutput("scores", class_count=2)]
    result = await client.infer("fake", files(png(3), png(4)), outputs=outputs)
    rows = result.as_numpy("scores")
    assert rows.shape == (2, 2)
    assert [row[0].decode().split(":")[1:] for row in rows] == [["3", "label 3"], ["4", "label 4"]]


async def test_typed_contents(stub: Any) -> None:
    answer = await stub.ModelInfer(message())
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).argmax() == 1
    values = [0.0] * 48
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, 3, 4, 4], "contents": {"fp32_contents": values}}
    answer = await stub.ModelInfer(message("fake_tensor", inputs=[tensor]))
    assert list(answer.outputs[0].shape) == [1, CLASSES]


async def test_a_compressed_request(client: Any) -> None:
    result = await client.infer("fake", files(png(3)), compression_algorithm="gzip")
    assert result.as_numpy("scores").argmax() == 3


async def test_the_synchronous_client(address: str) -> None:
    def calls() -> list[int]:
        answers: queue.Queue[Any] = queue.Queue()
        with triton.InferenceServerClient(address) as made:
            answers.put(made.infer("fake", files(png(3))))
            made.async_infer("fake", files(png(4)), lambda result, error: answers.put(error or result))
            return [answers.get(timeout=10).as_numpy("scores").argmax() for _ in range(2)]

    assert await asyncio.to_thread(calls) == [3, 4]


@pytest.mark.parametrize(
    ("sent", "code", "error_code", "said"),
    [
        (message("nobody"), "NOT_FOUND", "unknown_model", "no model 'nobody' here; served: fake"),
        (message(model_version="9"), "NOT_FOUND", "unknown_model", "version 1 is served"),
        (message(inputs=[]), "INVALID_ARGUMENT", "invalid_request", "expected 1 input but got 0"),
        (message("fake_tensor"), "INVALID_ARGUMENT", "invalid_request", "takes 'pixels', FP32"),
        (message(outputs=[{"name": "x"}]), "INVALID_ARGUMENT", "invalid_request", "unexpected inference output 'x'"),
        (message(parameters={"timeout": {"int64_param": -1}}), "INVALID_ARGUMENT", "bad_parameter", "timeout must be"),
        (message(parameters={"timeout": {"int64_param": 2**40}}), "INVALID_ARGUMENT", "bad_parameter", "between 1 and"),
        (message(parameters={"triton_x": {"bool_param": True}}), "INVALID_ARGUMENT", "invalid_request", "reserved"),
        (message(parameters={"a": {"string_param": "x" * 6000}}), "INVALID_ARGUMENT", "too_large", "than 5000 bytes"),
    ],
)
async def test_what_is_wrong_is_told(stub: Any, sent: Any, code: str, error_code: str, said: str) -> None:
    trailers = await refused(stub.ModelInfer(sent), grpc.StatusCode[code], said)
    assert trailers == {"request_id": "1", "error-code": error_code}


@pytest.mark.parametrize(("body", "error_code"), [(b"text", "unsupported_format"), (png(1)[:50], "broken_picture")])
async def test_a_broken_picture(stub: Any, body: bytes, error_code: str) -> None:
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [body]}}
    trailers = await refused(stub.ModelInfer(message(inputs=[given])), grpc.StatusCode.INVALID_ARGUMENT, ".")
    assert trailers["error-code"] == error_code


async def test_overload_says_when_to_come_back(classifier: FakeClassifier) -> None:
    replica = GrpcReplica(classifier, max_queued_pictures=1, max_pictures_per_request=1)
    classifier.gate.clear()
    async with serving(replica) as address, grpc.aio.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        first = asyncio.ensure_future(stub.ModelInfer(message()))
        await until(lambda: bool(classifier.chunks))
        trailers = await refused(stub.ModelInfer(message()), grpc.StatusCode.RESOURCE_EXHAUSTED, ".")
        classifier.gate.set()
        await first
    assert trailers["error-code"] == "overloaded"
    assert int(trailers["retry-after"]) >= 1


async def test_bytes_are_counted_and_given_back(classifier: FakeClassifier) -> None:
    """Both the message and what is taken out of it."""
    size = message().ByteSize()
    for most, fits in ((2 * size - 1, False), (2 * size + 200, True)):
        replica = GrpcReplica(classifier, max_queued_bytes=most)
        async with serving(replica) as address, grpc.aio.insecure_channel(address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for _ in range(3):
                if fits:
                    await stub.ModelInfer(message())
                else:
                    await refused(stub.ModelInfer(message()), grpc.StatusCode.RESOURCE_EXHAUSTED, "bytes")


async def test_not_ready_and_failed(stub: Any, classifier: FakeClassifier) -> None:
    classifier.errors = [NotReady("not yet; try again"), InferenceFailed("it failed; try again")]
    trailers = await refused(stub.ModelInfer(message()), grpc.StatusCode.UNAVAILABLE, "not yet")
    assert (trailers["retry-after"], trailers["error-code"]) == ("1", "not_ready")
    await refused(stub.ModelInfer(message()), grpc.StatusCode.INTERNAL, "it failed")


async def test_a_fault_is_logged_and_not_told(
    stub: Any, replica: GrpcReplica, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(*arguments: Any) -> Any:
        raise RuntimeError("a secret")

    monkeypatch.setattr(replica, "totals", failing)
    monkeypatch.setattr(replica.models["fake"], "classify", failing)
    for call in (stub.ModelStatistics(service_pb2.ModelStatisticsRequest()), stub.ModelInfer(message())):
        trailers = await refused(call, grpc.StatusCode.INTERNAL, "an error inside the service")
        assert trailers["error-code"] == "internal"
    [answer] = [answer async for answer in stub.ModelStreamInfer(iter([message()]))]
    assert answer.error_message == "an error inside the service; the operator's log says more"
    assert caplog.text.count("RuntimeError: a secret") == 3


@pytest.mark.parametrize("sent", [[], [("x-retry-attempt", "1")]])
async def test_who_comes_back_is_told_from_newcomers(
    stub: Any, replica: GrpcReplica, monkeypatch: pytest.MonkeyPatch, sent: list[tuple[str, str]]
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(replica.models["fake"].admission, "check_wait", lambda *asked, retry: seen.append(retry))
    await stub.ModelInfer(message(), metadata=sent)
    assert seen == [bool(sent)] * 2


@pytest.mark.parametrize(("level", "priority"), [(0, "interactive"), (1, "interactive"), (2, "batch"), (9, "batch")])
async def test_priority(client: Any, replica: GrpcReplica, level: int, priority: str) -> None:
    seen = Seen(replica)
    await client.infer("fake", files(png(1)), priority=level)
    assert seen.priorities == [priority]


@pytest.mark.parametrize(
    ("own_us", "call_s", "expected_s"),
    [(None, None, 30), (2_000_000, None, 2), (None, 5, 5), (2_000_000, 5, 2), (9_000_000, 5, 5), (None, 500, 120)],
)
async def test_the_earlier_deadline_holds(
    client: Any, replica: GrpcReplica, own_us: int | None, call_s: float | None, expected_s: float
) -> None:
    """A call's own is bounded by limits.max_timeout_ms."""
    seen = Seen(replica)
    await client.infer("fake", files(png(1)), timeout=own_us, client_timeout=call_s)
    assert seen.timeouts_s == [pytest.approx(expected_s, abs=0.5)]


async def test_the_time_of_a_call_is_told_by_grpc_alone(stub: Any, replica: GrpcReplica) -> None:
    seen = Seen(replica)
    await stub.ModelInfer(message(), metadata=[("x-call-remaining-ms", "1")])
    assert seen.timeouts_s == [pytest.approx(30, abs=0.5)]


async def test_a_deadline_that_passes(stub: Any, classifier: FakeClassifier, replica: GrpcReplica) -> None:
    classifier.gate.clear()
    sent = message(parameters={"timeout": {"int64_param": 30_000}})
    await refused(stub.ModelInfer(sent), grpc.StatusCode.DEADLINE_EXCEEDED, "time of this request was up")


async def test_work_stops_when_the_caller_goes_away(
    stub: Any, classifier: FakeClassifier, replica: GrpcReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[int] = []
    replica.request_log = RequestLog("all")
    monkeypatch.setattr(replica.request_log, "note", lambda entry: noted.append(entry.status))
    classifier.gate.clear()
    call = stub.ModelInfer(message())
    pipeline = replica.models["fake"]
    await until(lambda: pipeline.admission.queued_pictures == 1)
    call.cancel()
    await until(lambda: pipeline.admission.queued_pictures == 0)
    await until(lambda: noted == [GONE])
