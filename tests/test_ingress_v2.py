"""The Open Inference Protocol over ASGI, with a fake engine; the genuine clients run in tests/service/clients."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.types import Message
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from serve_app.errors import InferenceFailed, NotReady
from serve_app.ingress import create_app
from serve_app.ingress.v2_http import V2
from tests.fakes import FakeClassifier, FakeService
from tests.test_v2 import noise, pixels, png

INFER = "/v2/models/fake/infer"
RAW = {"Inference-Header-Content-Length": "0"}


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


@pytest.fixture
def service(classifier: FakeClassifier) -> FakeService:
    return FakeService(classifier, names=("fake", "other"))


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(service))
    headers = {"accept-encoding": "identity"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
        yield http


def pictures(*values: int) -> InferInput:
    files = np.array([[png(value)] for value in values], object)
    tensor = InferInput("image", list(files.shape), "BYTES")
    tensor.set_data_from_numpy(files)
    return tensor


def posted(given: InferInput, *outputs: InferRequestedOutput, **options: Any) -> dict[str, Any]:
    """What Triton's client would post, as arguments of httpx."""
    body, json_bytes = InferenceServerClient.generate_request_body([given], outputs=list(outputs), **options)
    headers = {} if json_bytes is None else {"Inference-Header-Content-Length": str(json_bytes)}
    return {"content": body, "headers": headers}


def result(answer: httpx.Response) -> InferResult:
    assert answer.status_code == 200, answer.text
    length = answer.headers.get("inference-header-content-length")
    assert answer.headers["content-type"] == ("application/octet-stream" if length else "application/json")
    return InferenceServerClient.parse_response_body(answer.content, header_length=int(length) if length else None)


def best(answer: httpx.Response) -> list[int]:
    return list(result(answer).as_numpy("scores").argmax(axis=1))


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert answer.headers["content-type"] == "application/json"
    assert "Traceback" not in answer.text
    return str(answer.json()["error"])


async def test_binary_and_json(client: httpx.AsyncClient) -> None:
    assert best(await client.post(INFER, **posted(pictures(3, 9)))) == [3, 4]
    answer = await client.post(INFER, **posted(pictures(3), InferRequestedOutput("scores", binary_data=False)))
    assert answer.headers["content-type"] == "application/json"
    assert best(answer) == [3]
    array = pixels(2, 1)
    tensor = InferInput("pixels", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=False)
    assert best(await client.post("/v2/models/fake_tensor/versions/1/infer", **posted(tensor))) == [2, 1]


async def test_a_file_alone(client: httpx.AsyncClient) -> None:
    answer = await client.post(INFER, content=png(4), headers=RAW)
    assert best(answer) == [4]
    assert "inference-header-content-length" in answer.headers
    body = pixels(3).tobytes()
    assert best(await client.post("/v2/models/fake_tensor/infer", content=body, headers=RAW)) == [3]


async def test_id_and_names_come_back(client: httpx.AsyncClient) -> None:
    said = result(await client.post(INFER, **posted(pictures(1), request_id="my id"))).get_response()
    assert (said["id"], said["model_name"], said["model_version"]) == ("my id", "fake", "1")


async def test_classification(client: httpx.AsyncClient) -> None:
    for binary in (True, False):
        wanted = InferRequestedOutput("scores", binary_data=binary, class_count=2)
        rows = result(await client.post(INFER, **posted(pictures(3, 1), wanted))).as_numpy("scores")
        texts = [[text if isinstance(text, str) else text.decode() for text in row] for row in rows.tolist()]
        assert [text.split(":")[1:] for text, _ in texts] == [["3", "label 3"], ["1", "label 1"]]


@pytest.mark.parametrize(("encoding", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_compressed_bodies_both_ways(client: httpx.AsyncClient, encoding: str, squeeze: Any) -> None:
    request = posted(pictures(3))
    request["content"] = squeeze(request["content"])
    request["headers"] |= {"content-encoding": encoding, "accept-encoding": encoding}
    answer = await client.post(INFER, **request)
    assert answer.headers["content-encoding"] == encoding
    assert best(answer) == [3]  # httpx inflates


async def test_a_bomb_is_refused_while_it_inflates(client: httpx.AsyncClient, service: FakeService) -> None:
    bomb = gzip.compress(bytes(4 * 2**20))
    assert len(bomb) < service.models["fake"].settings.limits.max_body_bytes
    tracemalloc.start()
    try:
        answer = await client.post(INFER, content=bomb, headers={"content-encoding": "gzip"})
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "larger than 5000 bytes" in refused(answer, 400)
    assert most_bytes < 2**20
    assert service.models["fake"].admission.queued_bytes == 0


async def test_wrong_encodings(client: httpx.AsyncClient) -> None:
    assert "gzip or deflate" in refused(await client.post(INFER, content=b"x", headers={"content-encoding": "br"}), 501)
    assert "Content-Encoding" in refused(
        await client.post(INFER, content=b"not gzip", headers={"content-encoding": "gzip"}), 400
    )
    half = gzip.compress(b"{}")[:-4]
    assert "too early" in refused(await client.post(INFER, content=half, headers={"content-encoding": "gzip"}), 400)


@pytest.mark.parametrize(
    ("parts", "status", "said"),
    [
        ({"content": b""}, 400, "not valid JSON"),
        ({"content": png(1)}, 400, "Inference-Header-Content-Length: 0"),
        ({"content": b"", "headers": RAW}, 400, "empty"),
        ({"content": b"junk", "headers": RAW}, 400, "not a picture format"),
        ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "9"}}, 400, "from 0 to 2"),
        ({"content": b"{}"}, 400, "expected 1 input but got 0"),
        ({"json": {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["x"]}]}}, 400, "format"),
        ({"json": {"parameters": {"triton_x": 1}}}, 400, "reserved"),
        ({"json": {"parameters": {"priority": "high"}, "inputs": []}}, 400, "expected 1 input"),
        ({"content": bytes(6000), "headers": RAW}, 400, "larger than 5000 bytes"),
    ],
)
async def test_wrong_requests(client: httpx.AsyncClient, parts: dict[str, Any], status: int, said: str) -> None:
    assert said in refused(await client.post(INFER, **parts), status)


async def test_errors_have_tritons_status_or_ours(
    client: httpx.AsyncClient, service: FakeService, classifier: FakeClassifier
) -> None:
    refused(await client.post("/v2/models/nothing/infer", content=b"{}"), 404)
    refused(await client.post("/v2/models/fake/versions/2/infer", content=b"{}"), 404)
    refused(await client.get(INFER), 405)
    classifier.errors = [InferenceFailed("it broke"), NotReady("going away")]
    assert refused(await client.post(INFER, content=png(1), headers=RAW), 500) == "it broke"
    assert refused(await client.post(INFER, content=png(1), headers=RAW), 503) == "going away"
    classifier.gate.clear()
    assert "time" in refused(await client.post(INFER, **posted(pictures(1), timeout=1000)), 504)
    classifier.gate.set()
    with service.models["fake"].admission.ticket(retry=True) as before:
        before.add_pictures(256, 1e9)
        answer = await client.post(INFER, content=png(1), headers=RAW)
        refused(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1


async def test_priority_counts(client: httpx.AsyncClient, service: FakeService) -> None:
    with service.models["fake"].admission.ticket() as before:
        before.add_pictures(200, 1e9)  # 2 s of work: too much for batch, not for interactive
        refused(await client.post(INFER, **posted(pictures(1), priority=2)), 429)
        assert best(await client.post(INFER, **posted(pictures(1), priority=1))) == [1]


async def test_bytes_are_counted_while_they_arrive_and_given_back(service: FakeService) -> None:
    admission = service.models["fake"].admission
    seen: list[int] = []
    parts = [png(1)[:20], png(1)[20:]]

    async def receive() -> Message:
        seen.append(admission.queued_bytes)
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"inference-header-content-length", b"0")]
    scope = {"type": "http", "method": "POST", "path": INFER, "root_path": "", "headers": headers, "query_string": b""}
    await V2(service)(scope, receive, send)
    assert seen == [0, 20]
    assert sent[0]["status"] == 200
    assert admission.queued_bytes == 0


async def test_a_client_that_hangs_up_gets_nothing(service: FakeService) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": INFER, "root_path": "", "headers": [], "query_string": b""}
    await asyncio.wait_for(V2(service)(scope, receive, send), 1)
    assert service.models["fake"].admission.queued_bytes == 0


async def test_server(client: httpx.AsyncClient, service: FakeService) -> None:
    assert (await client.get("/v2")).json()["name"] == "image-serve"
    assert (await client.get("/v2/health/live")).json() == {"live": True}
    assert (await client.get("/v2/health/ready")).json() == {"ready": True}
    assert (await client.get("/v2/models/other_tensor/ready")).json() == {"name": "other_tensor", "ready": True}
    assert (await client.get("/v2/models/fake/versions/1/ready")).status_code == 200
    service.is_ready = False
    refused(await client.get("/v2/health/ready"), 503)
    refused(await client.get("/v2/models/fake/ready"), 503)
    assert (await client.get("/v2/health/live")).status_code == 200


@pytest.mark.parametrize("path", ["", "/config", "/ready", "/stats", "/versions/1", "/versions/1/stats"])
async def test_each_path_of_a_model_names_it_or_says_404(client: httpx.AsyncClient, path: str) -> None:
    assert '"fake_tensor"' in (await client.get(f"/v2/models/fake_tensor{path}")).text
    assert "served: fake, fake_tensor" in refused(await client.get(f"/v2/models/missing{path}"), 404)
    refused(await client.get("/v2/models/fake/versions/7" + path.removeprefix("/versions/1")), 404)
    refused(await client.post(f"/v2/models/fake{path}"), 405)


async def test_statistics_count(client: httpx.AsyncClient) -> None:
    await client.post(INFER, **posted(pictures(3, 9)))
    await client.post(INFER, content=b"junk", headers=RAW)
    every = (await client.get("/v2/models/stats")).json()["model_stats"]
    assert [one["name"] for one in every] == ["fake", "fake_tensor", "other", "other_tensor"]
    assert [one["inference_count"] for one in every] == [2, 2, 0, 0]
    [one] = (await client.get("/v2/models/fake_tensor/stats")).json()["model_stats"]
    assert one["inference_stats"]["success"]["count"] == 2
    assert one["inference_stats"]["fail"]["count"] == 1


async def test_repository(client: httpx.AsyncClient, service: FakeService) -> None:
    index = (await client.post("/v2/repository/index")).json()
    assert {(one["name"], one["state"]) for one in index} == {
        (name, "READY") for name in ("fake", "fake_tensor", "other", "other_tensor")
    }
    service.is_ready = False
    assert len((await client.post("/v2/repository/index", json={})).json()) == 4
    assert (await client.post("/v2/repository/index", json={"ready": True})).json() == []
    for wrong in (b"[]", b"{"):
        refused(await client.post("/v2/repository/index", content=wrong), 400)
    refused(await client.post("/v2/repository/index", content=bytes(100_000)), 400)
    for action in ("load", "unload"):
        assert "configuration" in refused(await client.post(f"/v2/repository/models/x/{action}", json={}), 501)


async def test_settings_can_be_read_and_not_changed(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2/trace/setting")).json()["trace_level"] == ["OFF"]
    assert (await client.get("/v2/models/fake/trace/setting")).json()["trace_level"] == ["OFF"]
    refused(await client.get("/v2/models/missing/trace/setting"), 404)
    assert (await client.get("/v2/logging")).json()["log_error"] is True
    for path in ("/v2/trace/setting", "/v2/models/fake/trace/setting", "/v2/logging"):
        assert "operator" in refused(await client.post(path, json={}), 501)


@pytest.mark.parametrize("kind", ["system", "cuda"])
async def test_shared_memory(client: httpx.AsyncClient, kind: str) -> None:
    for region in ("", "/region/r"):
        assert (await client.get(f"/v2/{kind}sharedmemory{region}/status")).json() == []
        for action in ("register", "unregister"):
            refused(await client.post(f"/v2/{kind}sharedmemory{region}/{action}", json={}), 501)


@pytest.mark.parametrize(
    "path", ["/v2/", "/v2/nothing", "/v2/models", "/v2/models/fake/generate", "/v2/models/a/b/infer"]
)
async def test_unknown_paths(client: httpx.AsyncClient, path: str) -> None:
    refused(await client.get(path), 404)


async def test_under_a_route_prefix(service: FakeService) -> None:
    transport = httpx.ASGITransport(create_app(service), root_path="/pictures")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        assert (await http.get("/pictures/v2/models/fake")).json()["name"] == "fake"


async def test_a_file_that_is_cut_out_of_the_body_counts_twice() -> None:
    """A budget for one file is enough where the body is the file, and not where both are in memory."""
    picture = noise()
    service = FakeService(FakeClassifier(), max_queued_bytes=len(picture) + 1000)
    given = InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([picture], object))
    request = posted(given)
    assert len(request["content"]) < len(picture) + 1000
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://test") as http:
        assert (await http.post(INFER, content=picture, headers=RAW)).status_code == 200
        assert "bytes" in refused(await http.post(INFER, **request), 429)


async def test_a_fault_of_ours_is_not_explained_to_clients(client: httpx.AsyncClient, service: FakeService) -> None:
    async def ready(model: str | None = None) -> bool:
        raise RuntimeError("secret")

    service.ready = ready  # type: ignore[method-assign]
    assert "secret" not in refused(await client.get("/v2/health/ready"), 500)
